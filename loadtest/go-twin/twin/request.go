package twin

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

func requireJSON(h http.Header) *problem {
	mediaType, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(mediaType), "application/json") {
		return newProblem(415, "unsupported-media-type", "Unsupported Media Type", "Send the order as Content-Type: application/json.")
	}
	for coding := range strings.SplitSeq(strings.Join(h.Values("Content-Encoding"), ","), ",") {
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
			p := newProblem(415, "unsupported-content-encoding", "Unsupported Content Encoding", "Send the order without Content-Encoding.")
			p.headers["Accept-Encoding"] = "identity"
			return p
		}
	}
	return nil
}

// isVisible reports whether a text has 1 to max visible ASCII characters.
func isVisible(text string, max int) bool {
	invisible := func(c rune) bool { return c < '!' || c > '~' }
	return text != "" && len(text) <= max && !strings.ContainsFunc(text, invisible)
}

// A structured-field string, perhaps with parameters, which are dropped (RFC 9651).
var quoted = regexp.MustCompile(`^"((?:[^"\\]|\\["\\])*)"(?: *; *[a-z*][a-z0-9_.*-]*(?:=(?:"(?:[^"\\]|\\["\\])*"|[^\s"();,]+))?)*$`)

func idempotencyKey(values []string) (string, *problem) {
	if len(values) == 0 {
		return "", newProblem(400, "idempotency-key-missing", "Idempotency-Key Missing",
			"Send an Idempotency-Key header, a fresh UUID for each new order, so that repeating the request cannot order twice.")
	}
	key := strings.TrimSpace(values[0])
	if strings.HasPrefix(key, `"`) {
		found := quoted.FindStringSubmatch(key)
		if key = ""; found != nil {
			key = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(found[1])
		}
	}
	if len(values) > 1 || !isVisible(key, 255) {
		return "", newProblem(400, "idempotency-key-invalid", "Idempotency-Key Invalid",
			"Send one Idempotency-Key header of 1 to 255 visible ASCII characters.")
	}
	return key, nil
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, *problem) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge) || r.ContentLength > bodyMax:
		return nil, newProblem(413, "body-too-large", "Body too large", "The body may have 65536 bytes at most.")
	case isTimeout(err):
		return nil, newProblem(408, "request-timeout", "Request timed out", "The body did not arrive in time.")
	case err != nil:
		return nil, newProblem(400, "malformed-request", "Malformed request", "The body ended before its length.")
	}
	return body, nil
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

func orderID(text string) (uuid.UUID, *problem) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 {
		return id, invalid([]fieldError{{"id", "must be a UUID"}})
	}
	return id, nil
}

// matches reports whether a list of entity tags is "*" or has one that is.
func matches(lines []string, is func(string) bool) bool {
	list := strings.Join(lines, ",")
	if strings.TrimSpace(list) == "*" {
		return true
	}
	for tag := range strings.SplitSeq(list, ",") {
		if is(strings.TrimSpace(tag)) {
			return true
		}
	}
	return false
}

type page struct {
	status       string
	before       uuid.UUID
	number, size int64
}

func parsePage(raw string) (page, *problem) {
	p := page{before: uuid.Max, number: 1, size: 20}
	var faults []fieldError
	fault := func(field, message string) { faults = append(faults, fieldError{field, message}) }
	values, _ := url.ParseQuery(raw) // what cannot be decoded is unknown, and ignored
	for _, name := range []string{"status", "page", "page_size", "cursor"} {
		if len(values[name]) > 1 {
			fault(name, "must not appear more than once")
		}
	}
	if values.Has("page") && values.Has("cursor") {
		fault("cursor", "must not be combined with page")
	}
	if values.Has("status") {
		switch p.status = values.Get("status"); p.status {
		case "pending", "processing", "completed", "failed", "canceled":
		default:
			fault("status", "must be pending, processing, completed, failed or canceled")
		}
	}
	if values.Has("cursor") {
		text := values.Get("cursor")
		id, err := uuid.Parse(text)
		if p.before = id; err != nil || len(text) != 32 || id.Version() != 7 {
			fault("cursor", "must be a next_cursor of an earlier answer")
		}
	}
	number := func(name string, max int64, into *int64) {
		if !values.Has(name) {
			return
		}
		found, err := strconv.ParseUint(values.Get(name), 10, 31)
		if *into = int64(found); err != nil || found < 1 || *into > max {
			fault(name, "must be an integer from 1 to "+strconv.FormatInt(max, 10))
		}
	}
	number("page", 1<<31-1, &p.number)
	number("page_size", 100, &p.size)
	if faults != nil {
		return p, invalid(faults)
	}
	return p, nil
}

// cursor names the page that begins after an id.
func cursor(id uuid.UUID) string { return strings.ReplaceAll(id.String(), "-", "") }
