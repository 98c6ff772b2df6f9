package store

import "fmt"

// Product is what a key opens.
type Product uint8

// The products. The zero value is none.
const (
	ProductStocks Product = iota + 1
	ProductOptions
	ProductPaper
)

var productNames = [...]string{ProductStocks: "stocks", ProductOptions: "options", ProductPaper: "paper"}

// String returns the name used in flags and in the database.
func (p Product) String() string { return nameOf(productNames[:], p) }

// MarshalText implements encoding.TextMarshaler. Errors: no such product.
func (p Product) MarshalText() ([]byte, error) { return marshalName("product", productNames[:], p) }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: no such product.
func (p *Product) UnmarshalText(text []byte) error {
	return unmarshalName("product", productNames[:], text, p)
}

// Plan is what a user has subscribed to, for one product. Plans are ordered.
type Plan uint8

// The plans, in rising order. The zero value is none.
const (
	PlanFree Plan = iota + 1
	PlanDeveloper
	PlanExpert
	PlanCommercial
)

var planNames = [...]string{PlanFree: "free", PlanDeveloper: "developer", PlanExpert: "expert", PlanCommercial: "commercial"}

// HasStream reports whether the plan includes the live stream.
func (p Plan) HasStream() bool { return p >= PlanExpert }

// String returns the name used in flags and in the database.
func (p Plan) String() string { return nameOf(planNames[:], p) }

// MarshalText implements encoding.TextMarshaler. Errors: no such plan.
func (p Plan) MarshalText() ([]byte, error) { return marshalName("plan", planNames[:], p) }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: no such plan.
func (p *Plan) UnmarshalText(text []byte) error {
	return unmarshalName("plan", planNames[:], text, p)
}

func nameOf[T ~uint8](names []string, v T) string {
	if int(v) >= len(names) || names[v] == "" {
		return fmt.Sprintf("unknown(%d)", uint8(v))
	}
	return names[v]
}

func marshalName[T ~uint8](kind string, names []string, v T) ([]byte, error) {
	if int(v) >= len(names) || names[v] == "" {
		return nil, fmt.Errorf("store: no %s has number %d", kind, uint8(v))
	}
	return []byte(names[v]), nil
}

func unmarshalName[T ~uint8](kind string, names []string, text []byte, v *T) error {
	for i, name := range names {
		if name != "" && name == string(text) {
			*v = T(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not a %s: use one of %q", text, kind, names[1:])
}
