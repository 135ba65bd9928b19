"""Four threads and a slow database; the same with the twins."""

import lab

WAIT = 0.05  # seconds that the database takes
CLIENTS = 16
DURATION = 2 if lab.SHORT else 8


def measure(side, places, **settings):
    """Look-ups by clients that each wait for their answer, where `places` of them can wait for the database at a time."""
    with lab.slow_database(WAIT * 1000, lab.free_port()) as slow, lab.api(side, **slow, **lab.ALONE, **settings) as api:
        lab.load.wrk(api, "get.lua", CLIENTS, 1, {})
        with lab.watch(api, "http_threads_busy", "http_queue_depth") as seen:
            result = lab.load.wrk(api, "get.lua", CLIENTS, DURATION, {})
    bound = min(places, CLIENTS) / WAIT
    name = f"{side}, " + ", ".join(f"{key}={value}" for key, value in settings.items() if key != "DB_MAX_IDLE_CONNS")
    busy, queue = (round(max(values)) if side == "tbd" else "-" for values in seen.values())
    return {"name": name, "bound": bound, "busy": busy, "queue": queue, **result}


with lab.experiment():
    lab.seed(1000)
    few = measure("tbd", 4, HTTP_WORKERS="4")
    enough = measure("tbd", 16, HTTP_WORKERS="16", DB_MAX_CONNS="16", DB_MAX_IDLE_CONNS="16")
    seen = [few, enough]
    for twin in lab.SIDES[1:]:
        for connections in ("4", "16"):
            seen.append(measure(twin, int(connections), DB_MAX_CONNS=connections, DB_MAX_IDLE_CONNS=connections))
    lab.table(
        ["", "by Little's law", "measured/s", "a client waits", "threads busy", "queue"],
        [(one["name"], f"{one['bound']:.0f}/s", one["throughput"], f"{one['p50_ms']:.0f} ms", one["busy"], one["queue"]) for one in seen],
    )
    lab.bars("answers", [(one["name"], one["throughput"]) for one in seen], "/s")
    for one in seen:
        lab.claim(f"{one['name']}: no more than {one['bound']:.0f} answers a second", one["throughput"] <= one["bound"] * 1.05)
    lab.claim("four threads are all busy, while requests wait in the queue", few["busy"] == 4 and few["queue"] > 0)
    lab.claim("sixteen threads have more look-ups in progress than four can", enough["busy"] > 4)
