import json
import sys

import websocket  # pip install websocket-client

url, key, topics = sys.argv[1:]
ws = websocket.create_connection(url, header=[f"Authorization: Bearer {key}"])
ws.send(json.dumps({"action": "subscribe", "params": topics}))
while frame := ws.recv():
    for event in json.loads(frame):
        print(json.dumps(event), flush=True)
print("closed", file=sys.stderr)
