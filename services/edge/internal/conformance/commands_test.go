package conformance

import (
	"fmt"
	"slices"
	"strings"
)

// status is a message of one status object.
func status(kind, message string) string { return "[" + object(kind, message) + "]" }

func object(kind, message string) string {
	return `{"ev":"status","status":"` + kind + `","message":"` + message + `"}`
}

// command is a subscribe or unsubscribe.
func command(action, params string) []byte {
	return text(`{"action":"` + action + `","params":"` + params + `"}`)
}

// commandRows are hostile and odd messages to the CuteMarkets dialect.
func commandRows() []row {
	var (
		invalid  = status("error", "Invalid JSON")
		noObject = status("error", "invalid message: not a JSON object")
		noAction = status("error", "invalid message: action is missing or not a string")
		unknown  = status("error", "unknown action; use subscribe, unsubscribe or auth")
		noParams = status("error", "params is missing or not a string of comma-separated topics")
		tooMany  = status("error", "too many params: at most 1000 per message; none was carried out")
		done     = func(topic string) string { return status("success", "subscribed to: "+topic) }
		refused  = func(topic, problem string) string {
			return status("error", "cannot subscribe to: "+topic+": "+problem)
		}
		unknownPrefix = "unknown prefix (stocks: T Q A AM LULD NOI FMV LV)"
		form          = "a topic is PREFIX.SYMBOL or PREFIX.*"
		noStock       = "not a stock symbol (symbols are case-sensitive)"
	)
	rows := []row{
		{name: "four malformed messages", send: frames(text("not JSON"), text("[]"), text("42"), text("{}")), see: echoes(invalid, noObject, noObject, noAction)},
		{name: "five malformed messages", send: frames(text("x"), text("null"), text(`"subscribe"`), text(`{"action":1}`), text("{")),
			see: seen{texts: []string{invalid, noObject, noObject, noAction, invalid, status("error", "too many malformed messages")}, code: 1008}},
		{name: "depth of 10,000", send: frames(text(strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000))), see: echoes(noObject)},
		{name: "depth of 30,000", send: frames(text(strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000))), see: echoes(invalid)},
		{name: "empty message", send: frames(text("")), see: echoes(invalid)},
		{name: "unknown action", send: frames(command("explode", "T.AAPL")), see: echoes(unknown)},
		{name: "auth with the key of the socket", send: frames(command("auth", "key")), see: echoes(status("auth_success", "authenticated"))},
		{name: "auth with no key", send: frames(command("auth", "")), see: echoes(status("auth_failed", "authentication failed: invalid API key"))},

		{name: "params missing", send: frames(text(`{"action":"subscribe"}`)), see: echoes(noParams)},
		{name: "params not a string", send: frames(text(`{"action":"subscribe","params":["T.AAPL"]}`)), see: echoes(noParams)},
		{name: "params empty", send: frames(command("subscribe", ""), command("subscribe", ",, ,")), see: echoes(noParams, noParams)},
		{name: "1,001 params", send: frames(command("subscribe", strings.TrimSuffix(strings.Repeat("T.AAPL,", 1001), ","))), see: echoes(tooMany)},
		{name: "100,000 params", send: frames(command("subscribe", strings.Repeat("T.A,", 100_000))), see: seen{texts: []string{status("error", "message too big")}, code: 1009}},
		{name: "message of 64 KiB and an octet", send: frames(text(strings.Repeat(" ", 64<<10+1))), see: seen{texts: []string{status("error", "message too big")}, code: 1009}},

		{name: "wildcards", send: frames(command("subscribe", "T.*"), command("subscribe", "*")), see: echoes(done("T.*"), refused("*", form))},
		{name: "topic of the other market", send: frames(command("subscribe", "T.O:SPY260515C00500000")), see: echoes(refused("T.O:SPY260515C00500000", "option contracts are on the options stream"))},
		{name: "topic with line ends", send: frames(command("subscribe", `T.A\r\nX: y`)), see: echoes(refused(`T.A\r\nX: y`, noStock))},
		{name: "topic with quotes", send: frames(command("subscribe", `T.\"A\"\\`)), see: echoes(refused(`T.\"A\"\\`, noStock))},
		{name: "topic of 10 KiB", send: frames(command("subscribe", "T."+strings.Repeat("A", 10<<10))), see: echoes(refused("T."+strings.Repeat("A", 62), "the symbol is longer than 64 bytes"))},
		{name: "topic in lower case", send: frames(command("subscribe", "t.aapl,T.aapl")), see: echoes("[" + object("error", "cannot subscribe to: t.aapl: "+unknownPrefix) + "," + object("error", "cannot subscribe to: T.aapl: "+noStock) + "]")},
		{name: "topic like a key", send: frames(command("subscribe", "T.cm_0123456789")), see: echoes(refused("cm_[redacted]", noStock))},

		{name: "the same topic twice", send: frames(command("subscribe", "T.AAPL, T.AAPL"), command("subscribe", "T.AAPL")), see: echoes("["+object("success", "subscribed to: T.AAPL")+","+object("success", "subscribed to: T.AAPL")+"]", done("T.AAPL"))},
		{name: "unsubscribe from what is not subscribed", send: frames(command("unsubscribe", "T.NEVER")), see: echoes(status("success", "unsubscribed to: T.NEVER"))},
		{name: "a list of good and bad ones", send: frames(command("subscribe", "T.A,x,Q.B")), see: echoes("[" + object("success", "subscribed to: T.A") + "," + object("error", "cannot subscribe to: x: "+form) + "," + object("success", "subscribed to: Q.B") + "]")},
		{name: "1,000 commands at once", send: slices.Repeat(frames(command("subscribe", "T.A"), command("unsubscribe", "T.A")), 500), see: seen{texts: []string{status("error", "too many messages")}, code: 1008, flood: true}},

		{name: "two actions", send: frames(text(`{"action":"explode","action":"subscribe","params":"T.X","params":"T.A"}`)), see: echoes(done("T.A"))},
		{name: "keys in other letters", send: frames(text(`{"Action":"subscribe","params":"T.A"}`)), see: echoes(noAction)},
		{name: "NUL in a topic", send: frames(command("subscribe", `T.A\u0000`)), see: echoes(refused(`T.A\u0000`, noStock))},
		{name: "escaped topic", send: frames(command("subscribe", `T\u002eA`)), see: echoes(done("T.A"))},
		{name: "lone surrogate in a topic", send: frames(command("subscribe", `T.\ud800`)), see: echoes(refused("T.\ufffd", noStock))},
		{name: "huge number beside", send: frames(text(`{"n":1e999999,"m":` + strings.Repeat("9", 1000) + `,"action":"subscribe","params":"T.A"}`)), see: echoes(done("T.A"))},
		{name: "binary message", send: frames(binaries(4)), see: closed(1003)},
		{name: "not UTF-8", send: frames(text("{\"action\":\"\xff\"}")), see: closed(1007)},
	}
	for _, code := range []uint16{1000, 4000} {
		rows = append(rows, row{name: fmt.Sprintf("close frame with %d", code), send: frames(closing(code, "")), see: closed(code)})
	}
	return append(rows, row{name: "close frame, empty", send: frames(octet(0x88, "")), see: closed(noCode)})
}
