// Package principal names who a socket belongs to. It holds data only.
package principal

import "time"

// Principal is who a socket belongs to.
type Principal struct {
	UserID  string    // stable; the unit of the connection lock
	Expires time.Time // zero: never
}
