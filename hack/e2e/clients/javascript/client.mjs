import WebSocket from "ws"; // npm install ws

const [url, key, topics] = process.argv.slice(2);
const ws = new WebSocket(url, { headers: { Authorization: `Bearer ${key}` } });
ws.on("open", () => ws.send(JSON.stringify({ action: "subscribe", params: topics })));
ws.on("message", (frame) => {
  for (const event of JSON.parse(frame)) console.log(JSON.stringify(event));
});
ws.on("close", (code, reason) => console.error(`closed: ${code} ${reason}`));
