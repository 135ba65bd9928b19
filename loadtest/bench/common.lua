-- Shared code of the wrk scripts: random keys, known orders, and the result as one line of JSON.
-- Known orders are the benchmark's own rows: number n has the id known(n), STEP milliseconds after the one before it.

local threads = 0
local SINCE = tonumber(os.getenv("KNOWN_SINCE_MS") or "1717986918400")
local STEP = tonumber(os.getenv("KNOWN_STEP_MS") or "0")

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init()
  math.randomseed(os.time() * 64 + number)
  for _ = 1, 8 do math.random() end
end

-- A random (version 4) UUID, as an Idempotency-Key.
function uuid()
  local r = math.random
  return string.format("%04x%04x-%04x-4%03x-%04x-%04x%04x%04x", r(0, 65535), r(0, 65535), r(0, 65535),
    r(0, 4095), r(32768, 49151), r(0, 65535), r(0, 65535), r(0, 65535))
end

function known(n)
  local ms = SINCE + n * STEP
  return string.format("%08x-%04x-7000-8000-%012x", math.floor(ms / 65536), ms % 65536, n)
end

local KNOWN = tonumber(os.getenv("KNOWN_ORDERS") or "100000")
local BODY = '{"customer_email":"user@example.com","amount_cents":1999}'

function post(key)
  return wrk.format("POST", "/v1/orders", { ["Content-Type"] = "application/json", ["Idempotency-Key"] = key }, BODY)
end

function get_one()
  return wrk.format("GET", "/v1/orders/" .. known(math.random(1, KNOWN)))
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"p50_ms":%.3f,"p90_ms":%.3f,"p99_ms":%.3f,"p999_ms":%.3f,"max_ms":%.3f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3, latency.max / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
