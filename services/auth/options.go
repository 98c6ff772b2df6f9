package auth

import (
	"errors"

	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/ops"
	"github.com/cutemarkets/relay/services/internal/telemetry"

	"github.com/cutemarkets/relay/services/auth/internal/apikey"
)

// Options are the flags of the service.
type Options struct {
	GRPC       grpcx.ServerOptions `embed:""`
	Database   string              `name:"database" default:"relay-auth.db" help:"SQLite database of users and keys, created and migrated at the start."`
	PepperFile string              `name:"pepper-file" placeholder:"FILE" help:"File with the secret, 16 bytes or more, that keys are hashed with; without it they cannot be checked."`
	Operations ops.Options         `embed:""`
	Telemetry  telemetry.Options   `embed:""`
}

// Validate reports values that make no sense.
func (o Options) Validate() error {
	var errs []error
	if o.Database == "" {
		errs = append(errs, errors.New("--database is empty"))
	}
	if o.PepperFile == "" {
		errs = append(errs, apikey.ErrNoPepper)
	}
	return errors.Join(append(errs, o.GRPC.Validate(), o.Operations.Validate(), o.Telemetry.Validate())...)
}
