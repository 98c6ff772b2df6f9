package tape

import (
	"fmt"
	"math/rand/v2"
)

// MaxSymbols bounds the universe of one market.
const MaxSymbols = 20_000

// listing is a ticker and the price it hovers around.
type listing struct {
	ticker string
	cents  int64
}

// blueChips are real tickers, the most traded first.
var blueChips = []listing{
	{"SPY", 50_000}, {"NVDA", 18_000}, {"TSLA", 25_000}, {"AAPL", 23_000}, {"QQQ", 43_000},
	{"MSFT", 42_000}, {"AMZN", 19_000}, {"META", 52_000}, {"AMD", 16_000}, {"GOOGL", 17_500},
	{"GOOG", 17_700}, {"IWM", 21_000}, {"PLTR", 4_200}, {"INTC", 2_400}, {"BAC", 4_100},
	{"F", 1_100}, {"T", 2_200}, {"C", 6_500}, {"SOFI", 1_000}, {"NIO", 510},
	{"AVGO", 17_000}, {"NFLX", 69_000}, {"COIN", 22_000}, {"MARA", 1_900}, {"JPM", 21_000},
	{"XOM", 11_700}, {"WMT", 8_100}, {"KO", 6_900}, {"PFE", 2_900}, {"DIS", 9_500},
	{"BA", 15_500}, {"CVX", 15_000}, {"UBER", 7_600}, {"MU", 10_300}, {"CRM", 28_500},
	{"ORCL", 17_000}, {"CSCO", 5_400}, {"WFC", 5_700}, {"V", 28_000}, {"MA", 49_500},
	{"UNH", 58_000}, {"JNJ", 16_000}, {"PG", 17_200}, {"HD", 39_500}, {"ABBV", 19_500},
	{"LLY", 88_000}, {"COST", 89_000}, {"PEP", 17_300}, {"ADBE", 51_000}, {"QCOM", 17_100},
	{"GE", 18_600}, {"CAT", 38_500}, {"GS", 49_500}, {"MS", 10_500}, {"BRK.B", 46_000},
	{"BF.B", 4_700}, {"BRK.A", 69_000_000}, {"TLT", 9_700}, {"GLD", 24_500}, {"XLF", 4_500},
}

// underlyings are the stocks with listed options, the most traded first.
var underlyings = []struct {
	ticker string
	strike int64 // dollars, at the money
	step   int64 // dollars between strikes
}{
	{"SPY", 500, 5}, {"QQQ", 430, 5}, {"NVDA", 180, 5}, {"TSLA", 250, 5}, {"AAPL", 230, 5},
	{"AMZN", 190, 5}, {"MSFT", 420, 5}, {"META", 520, 10}, {"AMD", 160, 5}, {"IWM", 210, 1},
}

var expiries = []string{"260515", "260619", "260918", "261218", "270115", "270618"}

// Tickers returns the first n tickers of a market, the most active first. The
// list depends on nothing but its arguments, and a shorter list is a prefix of
// a longer one. No generated stock ticker begins with "ZZ".
func Tickers(m Market, n int) []string {
	all := universe(m, n)
	out := make([]string, len(all))
	for i, l := range all {
		out[i] = l.ticker
	}
	return out
}

func universe(m Market, n int) []listing {
	if n < 1 || n > MaxSymbols {
		panic(fmt.Sprintf("tape: %d symbols, want 1 to %d", n, MaxSymbols))
	}
	if m == Options {
		return contracts(n)
	}
	return stocks(n)
}

func stocks(n int) []listing {
	out := make([]listing, 0, n)
	seen := make(map[string]bool, n)
	for _, l := range blueChips {
		seen[l.ticker] = true
		if len(out) < n {
			out = append(out, l)
		}
	}
	// The list must not change with the seed of a run, so it has its own.
	r := rand.New(rand.NewPCG(1, 1))
	for len(out) < n {
		name := make([]byte, 3+min(r.IntN(4), 1))
		for i := range name {
			name[i] = byte('A' + r.IntN(26))
		}
		ticker := string(name)
		cents := 200 + int64(r.ExpFloat64()*5_000)
		if seen[ticker] || ticker[:2] == "ZZ" {
			continue
		}
		seen[ticker] = true
		out = append(out, listing{ticker, cents})
	}
	return out
}

// contracts lists option contracts in OCC form, nearest to the money first.
func contracts(n int) []listing {
	out := make([]listing, 0, n)
	for i := int64(0); ; i++ {
		away := (i + 1) / 2 // 0, 1, -1, 2, -2 and so on
		if i%2 == 0 {
			away = -away
		}
		for e, expiry := range expiries {
			for _, u := range underlyings {
				strike := u.strike + away*u.step
				if strike <= 0 {
					continue
				}
				for _, right := range []string{"C", "P"} {
					if len(out) == n {
						return out
					}
					ticker := fmt.Sprintf("O:%s%s%s%08d", u.ticker, expiry, right, strike*1000)
					out = append(out, listing{ticker, premium(u.strike, strike, right, e)})
				}
			}
		}
	}
}

// premium is a plausible price in cents: intrinsic value plus a time value that
// grows with the expiry and shrinks away from the money.
func premium(spot, strike int64, right string, expiry int) int64 {
	intrinsic := max(0, spot-strike)
	if right == "P" {
		intrinsic = max(0, strike-spot)
	}
	away := spot - strike
	if away < 0 {
		away = -away
	}
	value := spot * int64(3+2*expiry) * spot / (spot + 20*away) // cents: 3 % of spot and up
	return max(5, 100*intrinsic+value)
}
