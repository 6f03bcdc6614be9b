-- Hands back what is still this consumer's. Delivery counts stay.
--
-- KEYS: stream. ARGV: group, me, the consumer that keeps what was handed back, at most 1000 ids
-- in rising order. The ids count as idle for a day, so that whoever looks for abandoned entries
-- takes them as well. Returns how many it were.
local ids = mine(KEYS[1], ARGV[1], ARGV[2], 4)
if #ids == 0 then return 0 end
return #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0,
  unpack(and_then(ids, 'IDLE', 86400000, 'JUSTID')))
