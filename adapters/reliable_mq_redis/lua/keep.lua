-- Renews the hold on what is still this consumer's. Delivery counts stay.
--
-- KEYS: stream. ARGV: group, me, at most 1000 ids in rising order. Returns how many it were.
local ids = mine(KEYS[1], ARGV[1], ARGV[2], 3)
if #ids == 0 then return 0 end
return #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(and_then(ids, 'JUSTID')))
