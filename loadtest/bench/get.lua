-- One order by its id, at random among the known ones.
dofile(os.getenv("BENCH_LUA") .. "/common.lua")

function request() return get_one() end
