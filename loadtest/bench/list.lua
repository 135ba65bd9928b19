-- The first page of the newest orders.
dofile(os.getenv("BENCH_LUA") .. "/common.lua")

function request() return wrk.format("GET", "/v1/orders") end
