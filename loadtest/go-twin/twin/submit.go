package twin

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A submission is a new order with its key, its answer and its event.
type submission struct {
	key   string
	order Order
	body  []byte
	event message
	ttl   float64 // seconds
}

type verdict int

const (
	needsOwnStatement verdict = iota
	first
	replayed
	otherRequest
	running
)

// An outcome of a submission; the answer's fields are those of a replay.
type outcome struct {
	verdict     verdict
	id          uuid.UUID
	body        []byte
	unpublished *message
}

// Submit stores key, order and event together, or finds what the key stands for.
func (s *Store) Submit(ctx context.Context, row *submission) (outcome, error) {
	if s.writer != nil {
		if found, err := s.writer.do(ctx, row); err != nil || found.verdict != needsOwnStatement {
			return found, err
		}
	}
	// A key that was taken at the INSERT and gone at the SELECT has another try.
	for range 3 {
		found, err := s.submitOne(ctx, row)
		if sqlstate(err) == lockTimeout {
			break
		}
		if err != nil || found.verdict != needsOwnStatement {
			return found, err
		}
	}
	return outcome{verdict: running}, nil
}

// submitOne also waits for a request with the same key that is under way.
func (s *Store) submitOne(ctx context.Context, r *submission) (outcome, error) {
	found, err := query(ctx, s, submitOne, scanStored, r.key, r.order.fingerprint(), accepted, r.body, r.order.ID, r.ttl,
		r.order.Email, r.order.Amount, r.order.CreatedAt, r.event.payload, r.event.traceparent)
	if err == nil && r.interpret(found[0]).verdict == needsOwnStatement {
		found, err = query(ctx, s, selectKey, scanStored, r.key)
	}
	if err != nil || len(found) == 0 {
		return outcome{}, err
	}
	return r.interpret(found[0]), nil
}

func (s *Store) submitAll(rows []*submission) []result[outcome] {
	results := make([]result[outcome], len(rows))
	var distinct []int
	seen := map[string]bool{}
	for n, row := range rows {
		// A statement cannot insert a key twice; the second row gets its own.
		if !seen[row.key] {
			seen[row.key] = true
			distinct = append(distinct, n)
		}
	}
	var found []outcome
	var err error
	if len(distinct) == 1 {
		var one outcome
		one, err = s.submitOne(context.Background(), rows[distinct[0]])
		found = []outcome{one}
	} else {
		found, err = s.submitMany(rows, distinct)
	}
	if err != nil {
		// No row is at fault: every caller gets the error. After any other error nothing is written, and each row gets
		// its own statement, since one must not fail the others.
		if isUnavailable(err) && sqlstate(err) != lockTimeout {
			for n := range results {
				results[n].err = err
			}
		}
		return results
	}
	for n, at := range distinct {
		results[at].out = found[n]
	}
	return results
}

func (s *Store) submitMany(rows []*submission, which []int) ([]outcome, error) {
	size := len(which)
	keys, hashes, statuses, bodies := make([]string, size), make([][]byte, size), make([]int16, size), make([][]byte, size)
	ids, ttls, emails, amounts := make([]uuid.UUID, size), make([]float64, size), make([]string, size), make([]int64, size)
	times, payloads, traces := make([]time.Time, size), make([][]byte, size), make([]string, size)
	for n, at := range which {
		r := rows[at]
		keys[n], hashes[n], statuses[n], bodies[n] = r.key, r.order.fingerprint(), accepted, r.body
		ids[n], ttls[n], emails[n], amounts[n] = r.order.ID, r.ttl, r.order.Email, r.order.Amount
		times[n], payloads[n], traces[n] = r.order.CreatedAt, r.event.payload, r.event.traceparent
	}
	found, err := query(context.Background(), s, submitMany, scanStored,
		keys, hashes, statuses, bodies, ids, ttls, emails, amounts, times, payloads, traces)
	if err == nil && len(found) != size {
		err = fmt.Errorf("%d outcomes for %d rows", len(found), size)
	}
	if err != nil {
		return nil, err
	}
	outcomes := make([]outcome, size)
	for n, at := range which {
		outcomes[n] = rows[at].interpret(found[n])
	}
	return outcomes, nil
}

// What a statement finds under a submission's key.
type stored struct {
	isFirst             bool
	hash, body, payload []byte
	id                  *uuid.UUID
	traceparent         *string
}

func scanStored(row pgx.CollectableRow) (s stored, err error) {
	err = row.Scan(&s.isFirst, &s.hash, &s.body, &s.id, &s.payload, &s.traceparent)
	return s, err
}

func (r *submission) interpret(s stored) outcome {
	switch {
	// The second: our own row, stored before the connection was lost.
	case s.isFirst, s.id != nil && *s.id == r.order.ID:
		return outcome{verdict: first}
	case s.id == nil:
		return outcome{verdict: needsOwnStatement}
	case !bytes.Equal(s.hash, r.order.fingerprint()):
		return outcome{verdict: otherRequest}
	}
	found := outcome{verdict: replayed, id: *s.id, body: s.body}
	if s.payload != nil {
		found.unpublished = &message{*s.id, s.payload, text(s.traceparent)}
	}
	return found
}

func text(nullable *string) string {
	if nullable == nil {
		return ""
	}
	return *nullable
}
