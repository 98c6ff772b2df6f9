package watch

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// Options are the flags of `watch clients`.
type Options struct {
	URL         string `arg:"" name:"url" help:"Relay to watch, such as ws://relay-edge:80; the market's path is appended."`
	StocksKeys  string `name:"stocks-keys" type:"path" placeholder:"FILE" help:"File with API keys for stocks, one per line, each of another user: a client for each."`
	OptionsKeys string `name:"options-keys" type:"path" placeholder:"FILE" help:"The same for options."`
	Listen      string `name:"listen" default:":8090" help:"Address of the HTTP API."`
	Tickers     int    `name:"tickers" default:"6" help:"Tickers of each client, out of the 30 most active of its market; besides, it subscribes to AM.*."`
}

const (
	popular    = 30
	maxTickers = 20
)

// Validate reports what is wrong with the options, all at once.
func (o *Options) Validate() error {
	var errs []error
	if u, err := url.Parse(o.URL); err != nil || u.Scheme != "ws" || u.Host == "" {
		errs = append(errs, errors.New("url: want ws://host:port"))
	}
	if o.StocksKeys == "" && o.OptionsKeys == "" {
		errs = append(errs, errors.New("--stocks-keys or --options-keys: a client needs a key"))
	}
	if o.Tickers < 1 || o.Tickers > maxTickers {
		errs = append(errs, fmt.Errorf("--tickers: want 1 to %d, got %d", maxTickers, o.Tickers))
	}
	return errors.Join(errs...)
}

// clients makes a client of each key.
func (o *Options) clients(w *Watch, now time.Time) error {
	for _, m := range []struct {
		name tape.Market
		file string
	}{{tape.Stocks, o.StocksKeys}, {tape.Options, o.OptionsKeys}} {
		if m.file == "" {
			continue
		}
		text, err := os.ReadFile(m.file)
		if err != nil {
			return fmt.Errorf("read keys: %w", err)
		}
		tickers := tape.Tickers(m.name, popular)
		for i, key := range strings.Fields(string(text)) {
			w.clients = append(w.clients, newClient(w, len(w.clients), string(m.name), key, topics(tickers, i, o.Tickers), now))
		}
	}
	if len(w.clients) == 0 {
		return errors.New("read keys: the files have none")
	}
	return nil
}

// topics are the trades and quotes of some tickers, each client other ones.
func topics(tickers []string, client, count int) []string {
	list := []string{"AM.*"}
	for n := range count {
		ticker := tickers[(client+n*len(tickers)/count)%len(tickers)]
		list = append(list, "T."+ticker, "Q."+ticker)
	}
	return list
}
