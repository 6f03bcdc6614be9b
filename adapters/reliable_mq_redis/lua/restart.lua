-- Begins a partition again under a new epoch, for the owner it has.
--
-- KEYS: ownership. ARGV: me, my epoch. Returns the new epoch, 0 where it is no longer mine.
local own = redis.call('HMGET', KEYS[1], 'owner', 'epoch')
if own[1] ~= ARGV[1] or own[2] ~= ARGV[2] then return 0 end
return redis.call('HINCRBY', KEYS[1], 'epoch', 1)
