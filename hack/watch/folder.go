package watch

import (
	"context"
	"fmt"
	"log/slog"
	"os"
)

// Folder is one of a node's disk, for a hostPath volume: Kubernetes makes these
// for root alone, and no user of a pod may then write to them.
type Folder struct {
	Path  string `arg:"" name:"path" help:"Folder to make."`
	Owner int    `name:"owner" default:"65532" help:"User and group id that may write it."`
}

// Keep makes the folder, and removes it with all that is in it when ctx is done.
func (f *Folder) Keep(ctx context.Context, log *slog.Logger) error {
	err := os.MkdirAll(f.Path, 0o750)
	if err == nil {
		err = os.Chown(f.Path, f.Owner, f.Owner)
	}
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	log.Info("made", "path", f.Path)
	<-ctx.Done()
	if err := os.RemoveAll(f.Path); err != nil {
		return fmt.Errorf("remove folder: %w", err)
	}
	return nil
}
