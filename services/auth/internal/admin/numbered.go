package admin

import (
	"fmt"
)

// Numbered makes a command be about many users at once, as load tests need them.
type Numbered struct {
	Numbered int `name:"numbered" env:"-" placeholder:"N" help:"Not the user ID itself but the N users ID-1 to ID-N."`
}

func (n Numbered) validate(user string) error {
	if n.Numbered < 0 || n.Numbered > maxCount {
		return fmt.Errorf("--numbered is %d, must be from 1 to %d", n.Numbered, maxCount)
	}
	ids := n.ids(user)
	return checkUser(ids[len(ids)-1])
}

// users is how many there are.
func (n Numbered) users() int { return max(n.Numbered, 1) }

func (n Numbered) ids(user string) []string {
	if n.Numbered == 0 {
		return []string{user}
	}
	ids := make([]string, n.Numbered)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s-%d", user, i+1)
	}
	return ids
}

func (n Numbered) describe(user string) string {
	if n.Numbered == 0 {
		return user
	}
	return fmt.Sprintf("%[1]s-1 to %[1]s-%[2]d", user, n.Numbered)
}
