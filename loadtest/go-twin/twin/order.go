package twin

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

const amountMax = 1<<53 - 1

// Order is an order's state at UpdatedAt.
type Order struct {
	ID        uuid.UUID
	Email     string
	Amount    int64
	Status    string
	CreatedAt time.Time
	UpdatedAt time.Time
}

func newOrder(email string, amount int64) (Order, error) {
	id, err := uuid.NewV7()
	now := time.Now().UTC().Truncate(time.Microsecond)
	return Order{id, email, amount, "pending", now, now}, err
}

// Etag changes with every transition.
func (o Order) Etag() string {
	return fmt.Sprintf(`"%x-%s"`, o.UpdatedAt.UnixMicro(), o.Status)
}

// fingerprint equals tbd's, so that the two share their keys.
func (o Order) fingerprint() []byte {
	text := append([]byte("POST /v1/orders\x00"), o.Email...)
	text = binary.BigEndian.AppendUint64(append(text, 0), uint64(o.Amount))
	hash := sha256.Sum256(text)
	return hash[:]
}

// The JSON of an order, in answers and in events.
type orderJSON struct {
	ID        uuid.UUID `json:"id"`
	Email     string    `json:"customer_email"`
	Amount    int64     `json:"amount_cents"`
	Status    string    `json:"status"`
	CreatedAt string    `json:"created_at"`
	UpdatedAt string    `json:"updated_at"`
	Reason    string    `json:"reason,omitempty"`
}

func (o Order) wire() orderJSON {
	return orderJSON{ID: o.ID, Email: o.Email, Amount: o.Amount, Status: o.Status, CreatedAt: rfc3339(o.CreatedAt), UpdatedAt: rfc3339(o.UpdatedAt)}
}

func rfc3339(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

// encode is json.Marshal without the escapes for HTML, as tbd writes it.
func encode(value any) []byte {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	// Fails only for types that have no JSON; ours all have.
	_ = encoder.Encode(value)
	return bytes.TrimSuffix(text.Bytes(), []byte("\n"))
}

type cloudEvent struct {
	SpecVersion string    `json:"specversion"`
	ID          uuid.UUID `json:"id"`
	Source      string    `json:"source"`
	Type        string    `json:"type"`
	Subject     uuid.UUID `json:"subject"`
	Time        string    `json:"time"`
	ContentType string    `json:"datacontenttype"`
	Data        orderJSON `json:"data"`
}

// event encodes an order's event; its topic is its type, and its id is the same in every repetition.
func event(o Order, topic, reason string) []byte {
	data := o.wire()
	data.Reason = reason
	return encode(cloudEvent{
		"1.0", uuid.NewSHA1(o.ID, []byte(topic)), "/tbd/orders", topic, o.ID, rfc3339(o.UpdatedAt), "application/json", data,
	})
}

// createdOrder reads the order id from an event of the topic.
func createdOrder(value []byte, topic string) (uuid.UUID, error) {
	if value == nil {
		return uuid.Nil, fmt.Errorf("the record has no value")
	}
	var event struct {
		SpecVersion string `json:"specversion"`
		Type        string `json:"type"`
		Data        struct {
			ID *uuid.UUID `json:"id"`
		} `json:"data"`
	}
	switch err := json.Unmarshal(value, &event); {
	case !json.Valid(value):
		return uuid.Nil, fmt.Errorf("not JSON")
	case err != nil || event.Data.ID == nil:
		return uuid.Nil, fmt.Errorf("not an event of an order")
	case event.SpecVersion != "1.0":
		return uuid.Nil, fmt.Errorf("not CloudEvents 1.0")
	case event.Type != topic:
		return uuid.Nil, fmt.Errorf("not an event of type %s", topic)
	}
	return *event.Data.ID, nil
}

type fieldError struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

// parseNewOrder reads {"customer_email", "amount_cents"}: exactly these fields, each once. It returns every fault.
func parseNewOrder(body []byte) (string, int64, *problem) {
	if !utf8.Valid(body) || !json.Valid(body) {
		return "", 0, newProblem(400, "malformed-json", "Malformed JSON", "The body is not JSON.")
	}
	var faults []fieldError
	fault := func(field, message string) {
		if names := []rune(field); len(names) > 64 {
			field = string(names[:64])
		}
		faults = append(faults, fieldError{field, message})
	}
	if body = bytes.TrimLeft(body, " \t\r\n"); body[0] != '{' {
		fault("", "must be a JSON object")
		return "", 0, invalid(faults)
	}
	fields := map[string]json.RawMessage{}
	for name, value := range members(body) {
		if _, seen := fields[name]; seen {
			fault(name, "must not appear more than once")
		} else if name != "customer_email" && name != "amount_cents" {
			fault(name, "is not a known field")
		}
		fields[name] = value
	}
	email, amount := "", int64(0)
	if raw, there := fields["customer_email"]; !there {
		fault("customer_email", "is required")
	} else if raw[0] != '"' || json.Unmarshal(raw, &email) != nil {
		fault("customer_email", "must be a string")
	} else if why := emailFault(email); why != "" {
		fault("customer_email", why)
	}
	if raw, there := fields["amount_cents"]; !there {
		fault("amount_cents", "is required")
	} else {
		var err error
		// Only integers, unlike a JSON number: 5.0 and 5e2 are refused.
		if amount, err = strconv.ParseInt(string(raw), 10, 64); err != nil || amount < 1 || amount > amountMax {
			fault("amount_cents", "must be an integer from 1 to 9007199254740991")
		}
	}
	if faults != nil {
		return "", 0, invalid(faults)
	}
	return email, amount, nil
}

// members yields the members of a valid JSON object in order, repeated names included.
func members(object []byte) func(func(string, json.RawMessage) bool) {
	return func(yield func(string, json.RawMessage) bool) {
		decoder := json.NewDecoder(bytes.NewReader(object))
		_, _ = decoder.Token()
		for decoder.More() {
			name, err := decoder.Token()
			text, isText := name.(string)
			var value json.RawMessage
			if err != nil || !isText || decoder.Decode(&value) != nil || !yield(text, value) {
				return
			}
		}
	}
}

// emailFault says why a text is not a plausible address; empty if it is.
func emailFault(text string) string {
	invisible := func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) || c == '\ufeff' }
	local, domain, found := strings.Cut(text, "@")
	switch {
	case len(text) > 254:
		return "must be at most 254 bytes long"
	case strings.ContainsFunc(text, invisible):
		return "must not contain spaces or control characters"
	case !found || strings.Contains(domain, "@"):
		return "must contain exactly one @"
	case local == "" || len(local) > 64:
		return "must have 1 to 64 bytes before the @"
	case !strings.Contains(domain, ".") || strings.Contains("."+domain+".", ".."):
		return "must have a domain with a dot after the @"
	}
	return ""
}
