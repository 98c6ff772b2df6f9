package feed

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestInterest(t *testing.T) {
	i := newInterest()
	a := i.Acquire("T.AAPL")
	if a == 0 || i.Acquire("T.AAPL") != a {
		t.Fatal("a topic has one id, never 0")
	}
	b := i.Acquire("T.MSFT")
	if Slot(a) != 0 || Slot(b) != 1 {
		t.Fatalf("slots %d, %d; want them dense", Slot(a), Slot(b))
	}
	i.Release(a)
	if name, ok := i.Topic(a); !ok || name != "T.AAPL" {
		t.Fatalf("Topic = %q, %v", name, ok)
	}
	i.Release(a)
	if _, ok := i.Topic(a); ok || i.Len() != 1 {
		t.Fatal("a topic without references is still there")
	}
	if again := i.Acquire("T.AAPL"); again == a {
		t.Fatal("the id of a topic that had left is used again at once")
	}
	for _, id := range []uint32{a, 0, 1 << 23} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Release(%d) of an id that is not held must panic", id)
				}
			}()
			i.Release(id)
		}()
	}
}

// Who asks for a retired topic gets another id, of which the pods are told, while
// there are still holders of the old one: the shards let go of it one by one.
func TestRetire(t *testing.T) {
	i := newInterest()
	old := i.Acquire("Q.A")
	i.Acquire("Q.A")
	_, w := i.watch()
	defer w.close()
	other := i.Acquire("Q.B") // not sent before it is retired
	i.retire([]uint32{old, other, 1 << 23})
	i.retire([]uint32{old})
	if c := w.changes(); len(c.GetAdd()) != 0 || !slices.Equal(c.GetRemove(), []uint32{old}) {
		t.Fatalf("change = %v", c)
	}
	again := i.Acquire("Q.A")
	if again == 0 || Slot(again) == Slot(old) {
		t.Fatalf("id %d, slot %d; want another slot than the one that is held", again, Slot(again))
	}
	if c := w.changes(); len(c.GetRemove()) != 0 || len(c.GetAdd()) != 1 || c.GetAdd()[0].GetId() != again {
		t.Fatalf("change = %v", c)
	}
	for range 2 {
		i.Release(old)
	}
	i.Release(other)
	if _, ok := i.Topic(old); ok || i.Len() != 1 || w.changes() != nil || i.Acquire("Q.A") != again {
		t.Fatal("the holders of the old id take the new one with them")
	}
}

func TestInterestRefuses(t *testing.T) {
	i := newInterest()
	for _, topic := range []string{"", "T", "T.", ".A", "T.A B", "T.A,B", "T.\"", "T.\\", "T.\x7f", "T.ü", "T." + strings.Repeat("A", 68)} {
		if id := i.Acquire(topic); id != 0 {
			t.Errorf("Acquire(%q) = %d", topic, id)
		}
	}
	for n := range maxTopics {
		if i.Acquire(fmt.Sprint("T.", n)) == 0 {
			t.Fatalf("full after %d topics", n)
		}
	}
	if i.Acquire("T.AAPL") != 0 || i.Acquire("T.1") == 0 {
		t.Fatal("a full table takes no new topic, and more references to the others")
	}
}

// A slot that is used again has rested while others were, and has another
// generation; ids never repeat within 255 uses of a slot.
func TestInterestReuse(t *testing.T) {
	i := newInterest()
	seen := make(map[uint32]bool)
	for n := range 255 * (restingSlots + 1) {
		id := i.Acquire("T.AAPL")
		if id == 0 || seen[id] {
			t.Fatalf("id %d is used again after %d topics", id, n)
		}
		seen[id] = true
		i.Release(id)
	}
	if len(i.slots) != restingSlots+1 {
		t.Fatalf("%d slots for one topic at a time", len(i.slots))
	}
}

// A watcher that applies the snapshot and all changes always knows the table;
// what came and went between two looks is never told.
func TestWatcher(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		i := newInterest()
		held := make(map[uint32]int)
		topics := rapid.SampledFrom([]string{"T.A", "T.B", "Q.A", "AM.*"})
		type view struct {
			w     *watcher
			known map[uint32]string
		}
		var views []*view
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) { held[i.Acquire(topics.Draw(t, "topic"))]++ },
			"release": func(t *rapid.T) {
				for id := range held {
					i.Release(id)
					if held[id]--; held[id] == 0 {
						delete(held, id)
					}
					return
				}
			},
			"retire": func(t *rapid.T) {
				for id := range held {
					i.retire([]uint32{id})
					return
				}
			},
			"watch": func(*rapid.T) {
				all, w := i.watch()
				v := &view{w: w, known: make(map[uint32]string)}
				for _, topic := range all {
					v.known[topic.GetId()] = topic.GetName()
				}
				views = append(views, v)
			},
			"look": func(t *rapid.T) {
				for _, v := range views {
					before := maps.Clone(v.known)
					if change := v.w.changes(); change != nil {
						for _, id := range change.GetRemove() {
							if _, ok := before[id]; !ok {
								t.Fatalf("removal of id %d that was never told", id)
							}
							delete(v.known, id)
						}
						for _, topic := range change.GetAdd() {
							v.known[topic.GetId()] = topic.GetName()
						}
						names := make(map[string]bool)
						for _, name := range v.known {
							if names[name] {
								t.Fatalf("%s has two ids at a time", name)
							}
							names[name] = true
						}
					}
					now := make(map[uint32]string)
					for name, id := range i.ids {
						now[id] = name
					}
					if !maps.Equal(now, v.known) {
						t.Fatalf("watcher knows %v, table has %v", v.known, now)
					}
				}
			},
		})
		for _, v := range views {
			v.w.close()
		}
		if len(i.watchers) != 0 {
			t.Fatal("closed watchers are still told")
		}
	})
}

func TestInterestConcurrent(t *testing.T) {
	i := newInterest()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, w := i.watch()
			defer w.close()
			for n := range 2000 {
				id := i.Acquire(fmt.Sprint("T.", n%50))
				if _, ok := i.Topic(id); !ok {
					t.Error("a held topic is unknown")
				}
				i.Release(id)
				w.changes()
			}
		})
	}
	wg.Wait()
	if i.Len() != 0 {
		t.Fatalf("%d topics left", i.Len())
	}
}
