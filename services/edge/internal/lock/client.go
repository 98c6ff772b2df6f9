package lock

import "github.com/cutemarkets/relay/services/internal/redisx"

const (
	// All operations on locks go by pipelines; a full one goes out by one write.
	pipelineReadBuffer  = 8 << 10
	pipelineWriteBuffer = 48 << 10
)

// NewClient makes the Redis client of the locks; name is what Redis calls its
// connections. There is one for each pipeline, so that no acquire waits for
// scripts.
func NewClient(o redisx.Options, name string) (*redisx.Client, error) {
	return redisx.NewClient(o, redisx.Config{
		Name: name, Timeout: opTimeout, Pipelines: turns + buckets/pipelineScripts,
		PipelineReadBuffer: pipelineReadBuffer, PipelineWriteBuffer: pipelineWriteBuffer,
	})
}
