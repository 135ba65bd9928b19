-- New orders, each with a key of its own.
dofile(os.getenv("BENCH_LUA") .. "/common.lua")

function request() return post(uuid()) end
