-- Acknowledges for the owner of a partition, and for nobody else.
--
-- KEYS: ownership, stream. ARGV: group, me, my epoch, at most 1000 ids.
-- Returns how many it were, -1 where the partition is no longer mine.
local own = redis.call('HMGET', KEYS[1], 'owner', 'epoch')
if own[1] ~= ARGV[2] or own[2] ~= ARGV[3] then return -1 end
return redis.call('XACK', KEYS[2], ARGV[1], unpack(ARGV, 4))
