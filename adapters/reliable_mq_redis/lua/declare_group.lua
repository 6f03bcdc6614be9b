-- Creates a group on every stream of a topic, at the earliest entry.
--
-- KEYS: meta, streams. ARGV: group, 'ordered' or 'unordered'.
-- Returns how the group reads; where that is not what was asked for, nothing was changed.
local field = 'group:' .. ARGV[1]
local reads = redis.call('HGET', KEYS[1], field)
if reads and reads ~= ARGV[2] then return reads end
-- No entry has this id. A full server goes on after a first write that takes no memory: a consumer
-- that starts just then declares its groups, which exist as a rule.
redis.call('XACK', KEYS[2], ARGV[1], '0-0')
for i = 2, #KEYS do
  local reply = redis.pcall('XGROUP', 'CREATE', KEYS[i], ARGV[1], '0', 'MKSTREAM')
  if reply.err and not string.find(reply.err, 'BUSYGROUP', 1, true) then
    return redis.error_reply(reply.err)
  end
end
if not reads then redis.call('HSET', KEYS[1], field, ARGV[2]) end
return ARGV[2]
