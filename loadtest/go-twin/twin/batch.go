package twin

import "context"

type result[O any] struct {
	out O
	err error
}

type job[I, O any] struct {
	in   I
	done chan result[O]
}

// A batcher gives all waiting jobs to one call. There is no timer: a lone job starts at once, and jobs that arrive
// meanwhile form the next batch.
type batcher[I, O any] struct {
	jobs chan job[I, O]
}

// newBatcher starts the goroutines that call work, which returns a result for each job of at most max. They end with ctx.
func newBatcher[I, O any](ctx context.Context, goroutines, max int, work func([]I) []result[O]) *batcher[I, O] {
	b := &batcher[I, O]{make(chan job[I, O], 4096)}
	for range goroutines {
		go b.run(ctx, max, work)
	}
	return b
}

func (b *batcher[I, O]) run(ctx context.Context, max int, work func([]I) []result[O]) {
	for {
		var batch []job[I, O]
		select {
		case <-ctx.Done():
			return
		case first := <-b.jobs:
			batch = append(batch, first)
		}
	gather:
		for len(batch) < max {
			select {
			case next := <-b.jobs:
				batch = append(batch, next)
			default:
				break gather
			}
		}
		inputs := make([]I, len(batch))
		for n, job := range batch {
			inputs[n] = job.in
		}
		for n, result := range work(inputs) {
			batch[n].done <- result
		}
	}
}

// do waits for the job's result, until ctx is done at most.
func (b *batcher[I, O]) do(ctx context.Context, in I) (O, error) {
	job := job[I, O]{in, make(chan result[O], 1)}
	var none O
	select {
	case b.jobs <- job:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	select {
	case result := <-job.done:
		return result.out, result.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}
