package leader

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestOutages: when the API server is away for all, for however long, the leader
// stays the same: it is the first to renew, though the Lease has ended and others
// may see it sooner.
func TestOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		x := a.join("x", 0)
		a.await("x leads")
		processes := []*process{a.join("y", 0), a.join("z", 0), x}
		for length := retry; length < 40*time.Second; length += retry * 7 / 10 {
			a.api.setFault(hang(""))
			time.Sleep(length)
			a.api.setFault(nil)
			time.Sleep(duration + atMost)
			if proof := x.elector.candidates["stocks"].proof.Load(); proof == nil || !proof.Proven() {
				t.Errorf("not proven after an outage of %v", length)
			}
		}
		if len(a.epochs) != 1 {
			t.Errorf("epochs %v; %s", a.epochs, a.told())
		}
		for _, p := range processes {
			p.end()
		}
	})
}

// TestReadOnly: an API server that answers and changes nothing (a full etcd) is one
// problem, however often it answers.
func TestReadOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		x := a.join("x", 0)
		a.await("x leads")
		a.api.setFault(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				refuse(w, http.StatusInternalServerError, metav1.StatusReasonInternalError)
			}
			return r.Method != http.MethodPut
		})
		a.await("x degraded")
		y := a.join("y", 0)
		time.Sleep(10 * time.Minute)
		y.end()
		a.api.setFault(nil)
		a.await("x proven")
		x.end()
		if got := a.told(); got != "x leads, x degraded, x proven, x ended, released" {
			t.Errorf("happened %q", got)
		}
		if a.log.count(`msg="lease not usable"`) != 2 || a.log.count("lease usable again") != 1 {
			t.Errorf("log:\n%s", a.log)
		}
	})
}

// TestLeaderCutOff: the API server is away for the leader alone. Another leads when
// the duration is over, and the old one ends when it hears of that.
func TestLeaderCutOff(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(a *arena)
		cause  error
	}{
		"another leads":     {func(*arena) {}, errOther},
		"the Lease is gone": {func(a *arena) { a.api.change(func() { delete(a.api.leases, stocks) }) }, errGone},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newArena(t, stocks)
				x := a.join("x", time.Second)
				a.await("x leads")
				y := a.join("y", 0)
				time.Sleep(10 * time.Second)
				a.told()
				a.api.setFault(hang("x"))
				a.await("x degraded")
				if took := a.await("y leads"); took > closing+2*atMost {
					t.Errorf("y led %v after the end of the proof", took)
				}
				time.Sleep(time.Minute)
				if got := a.told(); got != "x degraded, y leads" {
					t.Errorf("happened %q", got)
				}
				tt.change(a)
				a.api.setFault(nil)
				if took := a.await("x ended"); took > deadline/2+atMost+x.closing {
					t.Errorf("led for %v more", took)
				}
				synctest.Wait()
				if a.log.count(fmt.Sprintf("cause=%q", tt.cause)) == 0 {
					t.Errorf("no cause %q in the log:\n%s", tt.cause, a.log)
				}
				y.end()
				x.end()
			})
		})
	}
}

// TestDegradedMeetsStandby: leader and standby want the Lease at one moment, when
// its duration is over. The API server lets one of them have it.
func TestDegradedMeetsStandby(t *testing.T) {
	for _, first := range []string{"x", "y"} {
		t.Run(first, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newArena(t, stocks)
				x := a.join("x", 0)
				a.await("x leads")
				y := a.join("y", 0)
				time.Sleep(10 * time.Second)
				a.told()
				a.api.setFault(meet(a.api, first))
				a.await("x degraded")
				time.Sleep(20 * time.Second)
				a.api.setFault(nil)
				time.Sleep(10 * time.Second)
				want := map[string]string{"x": "x degraded, x proven", "y": "x degraded, y leads, x ended"}[first]
				if got := a.told(); got != want {
					t.Errorf("happened %q, want %q", got, want)
				}
				x.end()
				y.end()
			})
		})
	}
}

// meet lets x hang until y wants the Lease, and then lets both go on to their
// updates before one of them is carried out.
func meet(api *apiServer, first string) func(http.ResponseWriter, *http.Request) bool {
	wanted := map[string]chan struct{}{"x": make(chan struct{}), "y": make(chan struct{})}
	want := map[string]func(){}
	for name, c := range wanted {
		want[name] = sync.OnceFunc(func() { close(c) })
	}
	done := make(chan struct{})
	finish := sync.OnceFunc(func() { close(done) })
	wait := func(r *http.Request, c chan struct{}) bool {
		select {
		case <-c:
			return true
		case <-r.Context().Done():
			return false
		}
	}
	return func(w http.ResponseWriter, r *http.Request) bool {
		name := r.Header.Get("Process")
		if r.Method != http.MethodPut {
			return name == "y" || wait(r, wanted["y"])
		}
		if name == "y" {
			want["y"]()
		} else if !wait(r, wanted["y"]) {
			return false
		}
		want[name]()
		switch {
		case name != first:
			return wait(r, done)
		case !wait(r, wanted["x"]):
			return false
		}
		api.serve(w, r)
		finish()
		return false
	}
}

// TestStopDegraded: a leader that stops without the API server closes the upstream
// and ends in time; it releases the Lease if that can be done.
func TestStopDegraded(t *testing.T) {
	for name, tt := range map[string]struct {
		back time.Duration
		want string
	}{"for ever": {time.Hour, "x degraded, x ended"}, "back in time": {retry + retry/2, "x degraded, x ended, released"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newArena(t, stocks)
				x := a.join("x", closing)
				a.await("x leads")
				a.told()
				a.api.setFault(hang(""))
				a.await("x degraded")
				time.Sleep(time.Minute)
				defer time.AfterFunc(closing+tt.back, func() { a.api.setFault(nil) }).Stop()
				begun := time.Now()
				x.end()
				if took := time.Since(begun); took > closing+deadline+deadline/2 {
					t.Errorf("ended after %v", took)
				}
				if got := a.told(); got != tt.want {
					t.Errorf("happened %q, want %q", got, tt.want)
				}
			})
		})
	}
}

// TestReleaseDegradedOfAnother: a leader that stops in doubt does not release the
// Lease of another.
func TestReleaseDegradedOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		x := a.join("x", closing)
		a.await("x leads")
		y := a.join("y", 0)
		time.Sleep(10 * time.Second)
		a.told()
		a.api.setFault(hang("x"))
		a.await("y leads")
		go x.end()
		synctest.Wait()
		a.api.setFault(nil)
		a.await("x ended")
		time.Sleep(time.Minute)
		if got := a.told(); got != "x degraded, y leads, x ended" {
			t.Errorf("happened %q", got)
		}
		y.end()
	})
}

// TestFlakyStandby: a standby whose looks fail now and then takes over from a dead
// leader all the same.
func TestFlakyStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, stocks)
		x := a.join("x", 0)
		a.await("x leads")
		y := a.join("y", 0)
		time.Sleep(10 * time.Second)
		a.api.setFault(func(w http.ResponseWriter, r *http.Request) bool {
			if from("x", r) || rand.IntN(5) == 0 {
				http.Error(w, "bad gateway", http.StatusBadGateway)
				return false
			}
			return true
		})
		t.Logf("y led after %v", a.await("y leads"))
		a.api.setFault(nil)
		x.end()
		y.end()
	})
}
