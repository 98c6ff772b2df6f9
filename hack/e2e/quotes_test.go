package e2e

import (
	"strings"
	"testing"

	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// TestOptionQuotes: the vendor serves quotes of so many contracts to all clients
// together. Who asks for more is told, and may ask again when others have left;
// one client alone does not get them all.
func TestOptionQuotes(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address, Rate: 1000, Args: map[string][]string{
		"fanout": {"--topic-slots=options:Q:3"}, "edge": {"--max-option-quotes=2"},
	}})
	var quotes []string
	for _, ticker := range tape.Tickers(tape.Options, 5) {
		quotes = append(quotes, "Q."+ticker)
	}
	refusal := func(topic, problem string) string {
		return `[{"ev":"status","status":"error","message":"cannot subscribe to: ` + topic + `: ` + problem + `"}]`
	}
	const none, own = "all slots for option quotes are taken, try again later", "the connection has as many option quotes as it may have"

	first := join(t, c.Info().Edges[0], "options", expert(t, c, "options"))
	first.subscribe(strings.Join(quotes[:3], ","))
	first.await("the refusal of the third", func(e event) bool { return strings.Contains(e.Message, quotes[2]+": "+own) })
	second := join(t, c.Info().Edges[1], "options", expert(t, c, "options"))
	second.subscribe(quotes[1] + "," + quotes[2]) // one of them is the other's, too
	for _, quote := range quotes[1:3] {
		second.await("a quote", func(e event) bool { return "Q."+e.Sym == quote })
	}
	third := join(t, c.Info().Edges[1], "options", expert(t, c, "options"))
	third.subscribe(quotes[3])
	third.expect(acknowledged(quotes[3]))
	third.expect(refusal(quotes[3], none))

	first.leave()
	eventually(t, "there is room", func() bool {
		third.subscribe(quotes[3])
		third.expect(acknowledged(quotes[3]))
		e := third.await("a quote, or a refusal", func(e event) bool { return e.Ev == "Q" || e.Status == "error" })
		return e.Ev == "Q"
	})
}
