package fault

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Step is a command with its time after the start.
type Step struct {
	At      time.Duration
	Command Command
}

// maxRandom bounds the steps of one random line.
const maxRandom = 100_000

// ParseScript reads a script: one command per line, in two forms,
//
//	+3s drop market=stocks
//	random drop count=10 within=60s after=5s apart=2s market=stocks
//
// of which the second spreads count commands over the time within, which begins
// after, and leaves at least apart between two of them. Where they fall follows
// from the seed and the number of the line. Empty lines and those that begin
// with # count for nothing. The steps are in the order of their times.
func ParseScript(r io.Reader, seed uint64) ([]Step, error) {
	var steps []Step
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		more, err := parseLine(words, rand.New(rand.NewPCG(seed, uint64(number))))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		steps = append(steps, more...)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	slices.SortStableFunc(steps, func(a, b Step) int { return int(a.At - b.At) })
	return steps, nil
}

func parseLine(words []string, random *rand.Rand) ([]Step, error) {
	if len(words) < 2 {
		return nil, errors.New("want a time and a fault, or random and a fault")
	}
	arguments := map[string]string{}
	for _, word := range words[2:] {
		key, value, ok := strings.Cut(word, "=")
		if _, twice := arguments[key]; !ok || value == "" || twice {
			return nil, fmt.Errorf("%q: want key=value, each key once", word)
		}
		arguments[key] = value
	}
	if words[0] == "random" {
		return parseRandom(words[1], arguments, random)
	}
	offset, signed := strings.CutPrefix(words[0], "+")
	at, err := time.ParseDuration(offset)
	if err != nil || !signed || at < 0 {
		return nil, fmt.Errorf("%q: want a time after the start, such as +3s, or random", words[0])
	}
	c, err := Parse(words[1], arguments)
	return []Step{{at, c}}, err
}

func parseRandom(name string, arguments map[string]string, random *rand.Rand) ([]Step, error) {
	take := func(key string) (text string) {
		text = arguments[key]
		delete(arguments, key)
		return text
	}
	count, err := number("count", take("count"), 1, maxRandom)
	if err != nil {
		return nil, err
	}
	within, err := duration("within", take("within"))
	if err != nil {
		return nil, err
	}
	var after, apart time.Duration
	for key, d := range map[string]*time.Duration{"after": &after, "apart": &apart} {
		if text := take(key); text != "" {
			if *d, err = duration(key, text); err != nil {
				return nil, err
			}
		}
	}
	spare := within - time.Duration(count-1)*apart
	if spare <= 0 || apart > within {
		return nil, fmt.Errorf("within: %s has no room for %d times, %s apart", within, count, apart)
	}
	c, err := Parse(name, arguments)
	if err != nil {
		return nil, err
	}
	steps := make([]Step, count)
	for i := range steps {
		steps[i] = Step{time.Duration(random.Int64N(int64(spare))), c}
	}
	slices.SortFunc(steps, func(a, b Step) int { return int(a.At - b.At) })
	for i := range steps {
		steps[i].At += after + time.Duration(i)*apart
	}
	return steps, nil
}
