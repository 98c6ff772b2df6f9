package store_test

import (
	"strings"
	"testing"

	"github.com/cutemarkets/relay/services/auth/internal/store"
)

func TestNames(t *testing.T) {
	for want, name := range map[store.Plan]string{
		store.PlanFree: "free", store.PlanDeveloper: "developer", store.PlanExpert: "expert", store.PlanCommercial: "commercial",
	} {
		var got store.Plan
		if err := got.UnmarshalText([]byte(name)); err != nil || got != want || want.String() != name {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for want, name := range map[store.Product]string{
		store.ProductStocks: "stocks", store.ProductOptions: "options", store.ProductPaper: "paper",
	} {
		var got store.Product
		if err := got.UnmarshalText([]byte(name)); err != nil || got != want || want.String() != name {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "gold", "Free"} {
		plan := store.PlanExpert
		if err := plan.UnmarshalText([]byte(name)); err == nil || plan != store.PlanExpert {
			t.Errorf("plan %q: %v, %v", name, plan, err)
		}
	}
	for _, plan := range []store.Plan{0, 5, 255} {
		if _, err := plan.MarshalText(); err == nil || !strings.HasPrefix(plan.String(), "unknown") {
			t.Errorf("plan %d: %v, %v", uint8(plan), plan, err)
		}
	}
}

func TestPlans(t *testing.T) {
	p := store.Plans{Stocks: store.PlanExpert, Options: store.PlanDeveloper}
	for product, want := range map[store.Product]bool{
		store.ProductStocks: true, store.ProductOptions: false, store.ProductPaper: false, 0: false,
	} {
		if got := p.Of(product).HasStream(); got != want {
			t.Errorf("%v: %v", product, got)
		}
	}
	if store.Plan(0).HasStream() || store.PlanFree.HasStream() || !store.PlanCommercial.HasStream() {
		t.Error("HasStream")
	}
}

func TestCheckUserID(t *testing.T) {
	for _, id := range []string{"u", "42", "a.b_c-d@e.f:g+h", strings.Repeat("x", 128)} {
		if err := store.CheckUserID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"", "a b", "ü", "{u}", "a\nb", "a/b", "a\xff", strings.Repeat("x", 129)} {
		if err := store.CheckUserID(id); err == nil {
			t.Errorf("%q was taken", id)
		}
	}
}

func TestCheckLabel(t *testing.T) {
	for _, label := range []string{"", "my key (2026), büro", strings.Repeat("x", 128)} {
		if err := store.CheckLabel(label); err != nil {
			t.Errorf("%q: %v", label, err)
		}
	}
	for _, label := range []string{"a\tb", "a\nb", "\x1b[31m", "a\xffb", strings.Repeat("x", 129)} {
		if err := store.CheckLabel(label); err == nil {
			t.Errorf("%q was taken", label)
		}
	}
}
