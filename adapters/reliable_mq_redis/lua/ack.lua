-- Acknowledges what is still this consumer's; what another took over is left to that one.
--
-- KEYS: stream. ARGV: group, me, at most 1000 ids in rising order. Returns how many it were.
local ids = mine(KEYS[1], ARGV[1], ARGV[2], 3)
if #ids == 0 then return 0 end
return redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
