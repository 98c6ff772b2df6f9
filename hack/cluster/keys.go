package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Admin runs an administrative command of auth (users set, keys create, …) on
// the cluster's store and returns what it printed.
func (c *Cluster) Admin(ctx context.Context, args ...string) (string, error) {
	binary := filepath.Join(c.options.Binaries, "auth")
	cmd := exec.CommandContext(ctx, binary, args...) //nolint:gosec // our own binary
	cmd.Env = append(environment(), "RELAY_DATABASE="+c.file("auth.db"), "RELAY_PEPPER_FILE="+c.file("pepper"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("cluster: auth %s: %w: %s", strings.Join(args[:2], " "), err, errs.String())
	}
	return out.String(), nil
}

// User makes or changes a user and returns a new key of it for a product.
func (c *Cluster) User(ctx context.Context, user, product, plan string) (key string, err error) {
	if _, err := c.Admin(ctx, "users", "set", "--user="+user, "--plan-"+product+"="+plan); err != nil {
		return "", err
	}
	return c.Key(ctx, user, product)
}

// Key returns a new key of a user for a product.
func (c *Cluster) Key(ctx context.Context, user, product string) (string, error) {
	out, err := c.Admin(ctx, "keys", "create", "--user="+user, "--product="+product)
	return strings.TrimSpace(out), err
}

// makeKeys makes one user and key per product and plan, and the further users.
func (c *Cluster) makeKeys(ctx context.Context) error {
	for _, product := range Products {
		c.info.Keys[product] = map[string][]string{}
		for _, plan := range Plans {
			key, err := c.User(ctx, product+"-"+plan, product, plan)
			if err != nil {
				return err
			}
			c.info.Keys[product][plan] = []string{key}
		}
	}
	if c.options.Users == 0 {
		return nil
	}
	numbered := "--numbered=" + strconv.Itoa(c.options.Users)
	if _, err := c.Admin(ctx, "users", "set", "--user=user", numbered, "--plan-stocks=expert"); err != nil {
		return err
	}
	out, err := c.Admin(ctx, "keys", "create", "--user=user", numbered, "--product=stocks")
	if err != nil {
		return err
	}
	c.info.Users = strings.Fields(out)
	return nil
}
