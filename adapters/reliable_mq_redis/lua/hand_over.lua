-- Gives partitions up at once.
--
-- KEYS: members, then the ownership of each partition. ARGV: me, 1 if I leave the group, then my
-- epoch for each partition. Returns how many were mine.
local given = 0
-- Nobody is called ''. A full server goes on after a first write that takes no memory.
redis.call('ZREM', KEYS[1], ARGV[2] == '1' and ARGV[1] or '')
for i = 2, #KEYS do
  local own = redis.call('HMGET', KEYS[i], 'owner', 'epoch')
  if own[1] == ARGV[1] and own[2] == ARGV[1 + i] then
    redis.call('HSET', KEYS[i], 'owner', '', 'until', '0')
    given = given + 1
  end
end
return given
