-- Begins a partition again under a new epoch, for the owner it has.
--
-- KEYS: members, ownership. ARGV: me, my epoch. Returns the new epoch, 0 where it is no longer mine.
local own = redis.call('HMGET', KEYS[2], 'owner', 'epoch')
if own[1] ~= ARGV[1] or own[2] ~= ARGV[2] then return 0 end
-- Nobody is called ''. A full server goes on after a first write that takes no memory.
redis.call('ZREM', KEYS[1], '')
return redis.call('HINCRBY', KEYS[2], 'epoch', 1)
