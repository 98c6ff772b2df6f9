// Command client prints what a relay streams.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/coder/websocket"
)

func main() {
	ctx, url, key, topics := context.Background(), os.Args[1], os.Args[2], os.Args[3]
	header := http.Header{"Authorization": {"Bearer " + key}}
	ws, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPHeader: header}) //nolint:bodyclose // the library closes it
	if err != nil {
		panic(err)
	}
	ws.SetReadLimit(1 << 20)
	err = ws.Write(ctx, websocket.MessageText, fmt.Appendf(nil, `{"action":"subscribe","params":%q}`, topics))
	for err == nil {
		var frame []byte
		if _, frame, err = ws.Read(ctx); err == nil {
			fmt.Println(string(frame)) // a JSON array of events
		}
	}
	fmt.Fprintln(os.Stderr, "closed:", err)
}
