package e2e

import "github.com/cutemarkets/relay/hack/feedsim/market"

// What fanout can do.
const (
	holdsUnproven = true  // a leader keeps a healthy feed while the lease cannot be proven
	resumes       = true  // an edge whose stream broke for a short time misses nothing
	dropsRepeated = true  // edges drop what two leaders both have sent them
	knowsLimits   = true  // --upstream-on-limit and --upstream-ghost-timeout
)

// limitFlags tell fanout the vendor's rule.
func limitFlags(rule market.LimitRule) []string {
	if !knowsLimits {
		return nil
	}
	return []string{"--upstream-on-limit=" + string(rule), "--upstream-ghost-timeout=15s"}
}
