package leader

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	coordination "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// A pool of go-redis that could not dial looks after a second whether it is closed.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

const (
	duration = 6 * time.Second
	deadline = 3 * time.Second
	retry    = time.Second
	closing  = 2 * time.Second
	// atMost is the longest pause of a standby between two looks.
	atMost = retry*22/10 + time.Millisecond

	stocks = "relay-fanout-stocks"
)

var config = LeaseConfig{Namespace: "relay", Name: "relay-fanout", Duration: duration, RenewDeadline: deadline, RetryPeriod: retry, Closing: closing}

func TestHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		x := a.join("x", 2*time.Second)
		a.await("x leads")
		y := a.join("y", 0)
		time.Sleep(30 * time.Second)
		if got := a.told(); got != "x leads" {
			t.Errorf("happened %q", got)
		}
		if x.elector.candidates["stocks"].proof.Load() == nil || y.elector.candidates["stocks"].proof.Load() != nil {
			t.Error("the gauges are wrong")
		}
		go x.end()
		took := a.await("y leads")
		if got := a.told(); got != "x ended, released, y leads" {
			t.Errorf("happened %q", got)
		}
		if took > x.closing+atMost {
			t.Errorf("the hand-over took %v", took)
		}
		y.end()
		if got := a.told(); got != "y ended, released" {
			t.Errorf("happened %q", got)
		}
		want := []Epoch{{uint64(created.UnixNano()), 1}, {uint64(created.UnixNano()), 2}}
		if !slices.Equal(a.epochs, want) {
			t.Errorf("epochs %v, want %v", a.epochs, want)
		}
		if a.log.count("level=WARN")+a.log.count("level=ERROR") > 0 || a.log.count(`msg="lease holder"`) != 6 {
			t.Errorf("log:\n%s", a.log)
		}
		for _, call := range a.api.calls {
			if call != "GET "+stocks && call != "PUT "+stocks {
				t.Errorf("call %s", call)
			}
		}
	})
}

// TestLeaseEmptied: somebody took the count of leaders away (helm upgrade --force).
func TestLeaseEmptied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		x := a.join("x", 0)
		a.await("x leads")
		y := a.join("y", 0)
		time.Sleep(10 * time.Second)
		x.end()
		a.api.edit(stocks, func(lease *coordination.Lease) { lease.Spec = coordination.LeaseSpec{} })
		a.await("y leads")
		y.end()
		want := []Epoch{{uint64(created.UnixNano()), 1}, {uint64(created.UnixNano()), 2}}
		if !slices.Equal(a.epochs, want) {
			t.Errorf("epochs %v, want %v", a.epochs, want)
		}
	})
}

// TestCrash: the holder vanishes, work and all, and its proof with it.
func TestCrash(t *testing.T) {
	quick := config
	quick.Duration, quick.RenewDeadline, quick.RetryPeriod = 4*time.Second, 2*time.Second, 500*time.Millisecond
	for _, c := range []LeaseConfig{config, quick} {
		t.Run(c.Duration.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newArena(t, stocks)
				a.config = c
				x := a.join("x", 0)
				a.await("x leads")
				y := a.join("y", 0)
				time.Sleep(10 * time.Second)
				a.told()
				a.mu.Lock()
				x.dead = true
				a.working--
				a.mu.Unlock()
				a.api.setFault(hang("x"))
				look := c.RetryPeriod*22/10 + time.Millisecond
				if took := a.await("y leads"); took < c.Duration-c.RetryPeriod || took > c.Duration+2*look {
					t.Errorf("y led after %v", took)
				} else {
					t.Logf("y led after %v", took)
				}
				x.end()
				y.end()
			})
		})
	}
}

func TestAPIAway(t *testing.T) {
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"hang":         hang(""),
		"failed":       refuseAll(http.StatusInternalServerError, metav1.StatusReasonInternalError),
		"forbidden":    refuseAll(http.StatusForbidden, metav1.StatusReasonForbidden),
		"unauthorized": refuseAll(http.StatusUnauthorized, metav1.StatusReasonUnauthorized),
		"broken": func(w http.ResponseWriter, _ *http.Request) bool {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = c.Close()
			}
			return false
		},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "bad gateway", http.StatusBadGateway)
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newArena(t, stocks)
				x := a.join("x", 0)
				a.await("x leads")
				time.Sleep(10*time.Second + retry/2)
				a.api.setFault(fault)
				if took := a.await("x degraded"); took < duration-closing-retry || took > duration-closing {
					t.Errorf("proven for %v more", took)
				}
				y := a.join("y", 0) // it does not take part blindly
				time.Sleep(10 * time.Minute)
				if got := a.told(); got != "x leads, x degraded" {
					t.Errorf("happened %q", got)
				}
				if got := a.log.count(`msg="lease not usable"`); got != 2 || a.log.count("leadership degraded") != 1 {
					t.Errorf("%d records of one outage:\n%s", got, a.log)
				}
				a.api.setFault(nil)
				if took := a.await("x proven"); took > atMost+deadline/2 {
					t.Errorf("proven again after %v", took)
				}
				time.Sleep(time.Minute)
				if a.log.count("lease usable again") != 2 || a.log.count("leadership proven again") != 1 {
					t.Errorf("log:\n%s", a.log)
				}
				y.end()
				x.end()
				if got := a.told(); got != "x proven, x ended, released" {
					t.Errorf("happened %q", got)
				}
				c := x.elector.candidates["stocks"]
				if c.changes[changeAcquired].Load() != 1 || c.changes[changeDegraded].Load() != 1 || c.changes[changeLost].Load() != 0 || c.changes[changeReleased].Load() != 1 {
					t.Error("changes are miscounted")
				}
				if want := []Epoch{{uint64(created.UnixNano()), 1}}; !slices.Equal(a.epochs, want) {
					t.Errorf("epochs %v, want %v", a.epochs, want)
				}
			})
		})
	}
}

// TestShortOutage: a leader leads on when the API server is back in time.
func TestShortOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		x := a.join("x", 0)
		a.await("x leads")
		for range 20 {
			a.api.setFault(refuseAll(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable))
			time.Sleep(deadline - retry - retry/10)
			a.api.setFault(nil)
			time.Sleep(2 * retry)
			a.api.edit(stocks, func(lease *coordination.Lease) { lease.Labels = map[string]string{"edited": "yes"} }) // a conflict
			time.Sleep(2 * retry)
		}
		x.end()
		if got := a.told(); got != "x leads, x ended, released" {
			t.Errorf("happened %q\n%s", got, a.log)
		}
		if x.elector.candidates["stocks"].errors[ReasonConflict].Load() == 0 {
			t.Error("no conflict")
		}
	})
}

// TestTakenAway: a leader that sees another holder, no holder, or no Lease, has
// lost at once.
func TestTakenAway(t *testing.T) {
	other, nobody := "other", ""
	for name, tt := range map[string]struct {
		change func(a *arena)
		cause  error
		again  bool // x leads again
	}{
		"another holder": {func(a *arena) {
			a.api.edit(stocks, func(l *coordination.Lease) { l.Spec.HolderIdentity = &other; *l.Spec.LeaseTransitions++ })
		}, errOther, true},
		"no holder": {func(a *arena) {
			a.api.edit(stocks, func(l *coordination.Lease) { l.Spec.HolderIdentity = &nobody })
		}, errOther, true},
		"deleted": {func(a *arena) { a.api.change(func() { delete(a.api.leases, stocks) }) }, errGone, false},
		"made anew": {func(a *arena) {
			a.api.create(stocks, time.Now())
		}, errOther, true},
		// As after the store of the API server was restored.
		"transitions go back": {func(a *arena) {
			a.api.edit(stocks, func(l *coordination.Lease) { l.Spec.HolderIdentity = &nobody; *l.Spec.LeaseTransitions = 0 })
		}, errOther, true},
		"transitions alone": {func(a *arena) {
			a.api.edit(stocks, func(l *coordination.Lease) { *l.Spec.LeaseTransitions++ })
		}, errOther, true},
		"another Lease": {func(a *arena) {
			a.api.edit(stocks, func(l *coordination.Lease) { l.UID = "another" })
		}, errOther, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newArena(t, stocks)
				x := a.join("x", time.Second)
				a.await("x leads")
				time.Sleep(10 * time.Second)
				tt.change(a)
				if took := a.await("x ended"); took > retry+x.closing {
					t.Errorf("led for %v more", took)
				}
				synctest.Wait()
				if !strings.Contains(a.log.String(), fmt.Sprintf("cause=%q", tt.cause)) {
					t.Errorf("no cause %q in the log:\n%s", tt.cause, a.log)
				}
				if tt.again {
					a.await("x leads")
				} else {
					time.Sleep(10 * time.Second)
					if a.log.count("reason=missing") != 1 {
						t.Errorf("log:\n%s", a.log)
					}
					a.api.create(stocks, time.Now())
					a.await("x leads")
				}
				x.end()
			})
		})
	}
}

func TestMissingLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t)
		x := a.join("x", 0)
		time.Sleep(time.Minute)
		if a.log.count("lease not usable") != 1 || a.log.count("create the Lease") != 1 {
			t.Errorf("log:\n%s", a.log)
		}
		if n := x.elector.candidates["stocks"].errors[ReasonMissing].Load(); n < 20 || n > 60 {
			t.Errorf("%d attempts in a minute", n)
		}
		a.api.create(stocks, created)
		if took := a.await("x leads"); took > atMost {
			t.Errorf("led after %v", took)
		}
		x.end()
	})
}

// TestWorkEnds: work that returns while it leads ends Run, after the release.
func TestWorkEnds(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct{ returned, want error }{{nil, ErrEnded}, {broken, broken}} {
		synctest.Test(t, func(t *testing.T) {
			a := newArena(t, stocks)
			x := a.join("x", 0)
			a.await("x leads")
			x.fail <- tt.returned
			if err := <-x.ended; !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "stocks") {
				t.Errorf("Run: %v", err)
			}
			if got := a.told(); got != "x leads, x ended, released" {
				t.Errorf("happened %q", got)
			}
			x.stop()
		})
	}
}

// TestReleaseMeetsRenewal: an update that was on its way when the process
// stopped arrives just before the release.
func TestReleaseMeetsRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		x := a.join("x", 0)
		a.await("x leads")
		time.Sleep(3 * time.Second)
		gets := 0
		a.api.setFault(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet {
				gets++
			} else if gets == 1 {
				a.api.edit(stocks, func(l *coordination.Lease) { l.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()} })
			}
			return true
		})
		x.end()
		if holder, _ := a.api.holder(stocks); holder != "" || gets != 2 {
			t.Errorf("%q holds the Lease after %d tries", holder, gets)
		}
	})
}

// TestReleaseFails: a process that cannot release ends in time, and the release
// is tried again while there is time.
func TestReleaseFails(t *testing.T) {
	for name, tt := range map[string]struct {
		back time.Duration
		want string
	}{"for ever": {time.Hour, "x ended"}, "at first": {retry + retry/2, "x ended, released"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newArena(t, stocks)
				x := a.join("x", 0)
				a.await("x leads")
				a.told()
				a.api.setFault(refuseAll(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable))
				back := time.AfterFunc(tt.back, func() { a.api.setFault(nil) })
				defer back.Stop()
				begun := time.Now()
				x.end()
				if took := time.Since(begun); took > deadline {
					t.Errorf("ended after %v", took)
				}
				if got := a.told(); got != tt.want {
					t.Errorf("happened %q, want %q", got, tt.want)
				}
				if a.log.count("lease not released") != 1-strings.Count(tt.want, "released") {
					t.Errorf("log:\n%s", a.log)
				}
			})
		})
	}
}

// TestStopWhileAcquiring: the answer to the update that acquires the Lease is
// lost, for the process stops; the Lease is released all the same.
func TestStopWhileAcquiring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		var x *process
		acquiring := make(chan struct{})
		a.api.setFault(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet {
				return true
			}
			a.api.serve(discard{}, r)
			a.api.setFault(nil)
			close(acquiring)
			<-r.Context().Done()
			return false
		})
		x = a.join("x", 0)
		<-acquiring
		if holder, _ := a.api.holder(stocks); holder == "" {
			t.Fatal("not acquired")
		}
		x.end()
		if got := a.told(); got != "released" {
			t.Errorf("happened %q", got)
		}
	})
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

func TestStandbyStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		x := a.join("x", 0)
		a.await("x leads")
		y := a.join("y", 0)
		time.Sleep(10 * time.Second)
		y.end()
		x.end()
		if got := a.told(); got != "x leads, x ended, released" {
			t.Errorf("happened %q", got)
		}
	})
}

func TestUnknownMarket(t *testing.T) {
	k, err := NewKubernetes(&rest.Config{Host: "http://api"}, config, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Run(t.Context(), "stocks", nil); !errors.Is(err, ErrMarket) {
		t.Errorf("Run: %v", err)
	}
}
