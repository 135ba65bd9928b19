-- A random known order by its id.
dofile(os.getenv("BENCH_LUA") .. "/common.lua")

function request() return get_one() end
