package main

import (
	"context"

	"github.com/cutemarkets/relay/services/auth"
)

// serve is the command that runs the service.
type serve struct {
	auth.Options `embed:""`
}

// Run serves until ctx is done.
func (s *serve) Run(ctx context.Context) error {
	service, err := auth.New(s.Options) //nolint:contextcheck // New only composes; what runs gets ctx from Run.
	if err != nil {
		return err
	}
	return service.Run(ctx)
}
