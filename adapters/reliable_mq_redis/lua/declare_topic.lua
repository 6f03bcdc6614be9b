-- Writes the lasting facts of a topic where it is new.
--
-- KEYS: meta. ARGV: partitions and retention in ms where the topic is new, each of them.
-- Returns {partitions, retention} as they are now ('' for none).
if redis.call('EXISTS', KEYS[1]) == 0 then
  -- It is not there. A full server goes on after a first write that takes no memory.
  redis.call('UNLINK', KEYS[1])
  redis.call('HSET', KEYS[1], 'layout', '1', 'partitions', ARGV[1])
  if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'retention', ARGV[2]) end
end
local facts = redis.call('HMGET', KEYS[1], 'partitions', 'retention')
return {facts[1] or '', facts[2] or ''}
