// Package auth is the auth service: it answers over gRPC (auth.v1) who an API
// key belongs to and whether it opens a product. It composes the parts and owns
// their order: the operations listener starts first and stops last, health and
// readiness turn before the gRPC server stops.
//
// Its goroutines are those parts and what net/http and grpc-go start for them;
// overload is the matter of internal/authn.
package auth

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
	"github.com/cutemarkets/relay/services/auth/internal/apikey"
	"github.com/cutemarkets/relay/services/auth/internal/authn"
	"github.com/cutemarkets/relay/services/auth/internal/store/sqlite"
	"github.com/cutemarkets/relay/services/internal/grpcx"
	"github.com/cutemarkets/relay/services/internal/lifecycle"
	"github.com/cutemarkets/relay/services/internal/ops"
	"github.com/cutemarkets/relay/services/internal/telemetry"
)

// shutdownTimeout bounds the sending of the last traces.
const shutdownTimeout = 5 * time.Second

var errRunTwice = errors.New("auth: the service has been run already")

// Service is the auth service.
type Service struct {
	// Static after construction.
	options    Options
	pepper     apikey.Pepper
	telemetry  *telemetry.Telemetry
	grpc       *grpcx.Server
	operations *ops.Server

	ran atomic.Bool
}

// New makes the service. It opens no listener and no database.
func New(o Options) (*Service, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	pepper, err := apikey.ReadPepper(o.PepperFile)
	if err != nil {
		return nil, err
	}
	t, err := telemetry.New(context.Background(), "auth", o.Telemetry)
	if err != nil {
		return nil, err
	}
	server, err := grpcx.NewServer(o.GRPC, t)
	if err != nil {
		return nil, errors.Join(err, t.Shutdown(context.Background()))
	}
	return &Service{
		options:    o,
		pepper:     pepper,
		telemetry:  t,
		grpc:       server,
		operations: ops.New(o.Operations, t),
	}, nil
}

// Run serves until ctx is done, then stops in order. It can be called once.
func (s *Service) Run(ctx context.Context) (err error) {
	if s.ran.Swap(true) {
		return errRunTwice
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err = errors.Join(err, s.telemetry.Shutdown(ending))
	}()
	database, err := s.openStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close()) }()

	server, err := authn.New(database, s.pepper, s.telemetry.Logger, s.telemetry.Meter("auth"))
	if err != nil {
		return err
	}
	authv1.RegisterAuthServiceServer(s.grpc, server)
	s.grpc.SetServing(false) // until the store has answered
	monitor := authn.NewMonitor(server, s.grpc.SetServing)
	s.operations.Ready("store", monitor.Ready)

	// Ready means serving: the listener is open before readiness can be asked for.
	if _, err := s.grpc.Listen(); err != nil {
		return err
	}
	group := lifecycle.NewGroup(s.telemetry.Logger)
	group.Add("operations", s.operations.Run)
	group.Add("grpc", s.grpc.Run)
	group.Add("store monitor", monitor.Run)
	return group.Run(ctx)
}

// openStore migrates and opens the database, and makes sure that its keys are
// of our pepper.
func (s *Service) openStore(ctx context.Context) (*sqlite.Store, error) {
	applied, err := sqlite.Migrate(ctx, s.options.Database)
	if err != nil {
		return nil, err
	}
	for _, name := range applied {
		s.telemetry.Logger.Info("database migrated", slog.String("component", "store"), slog.String("migration", name))
	}
	database, err := sqlite.Open(ctx, s.options.Database)
	if err != nil {
		return nil, err
	}
	if err := database.BindPepper(ctx, s.pepper.Fingerprint()); err != nil {
		return nil, errors.Join(err, database.Close())
	}
	return database, nil
}
