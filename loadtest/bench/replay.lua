-- The same few hundred orders repeatedly: after the first round every answer is a replay.
dofile(os.getenv("BENCH_LUA") .. "/common.lua")

local KEYS = 256
local sent = 0

function request()
  sent = sent + 1
  return post("replay-" .. number .. "-" .. sent % KEYS)
end
