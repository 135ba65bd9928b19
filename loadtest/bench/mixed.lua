-- Four reads for each new order.
dofile(os.getenv("BENCH_LUA") .. "/common.lua")

function request()
  if math.random(1, 5) == 1 then return post(uuid()) end
  return get_one()
end
