-- Removes consumers of this library that are gone and hold nothing. One that holds entries stays:
-- removing it would lose them.
--
-- KEYS: stream. ARGV: group, prefix of our consumers, ms of silence (0: only the one named),
-- a consumer to remove in any case. Returns how many were removed.
local removed = 0
-- No entry has this id. Redis 6.2, full, would refuse to remove a consumer as the first write.
redis.call('XACK', KEYS[1], ARGV[1], '0-0')
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local facts = {}
  for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
  local name, silence = facts['name'], tonumber(ARGV[3])
  local gone = silence > 0 and facts['idle'] > silence
    and string.sub(name, 1, #ARGV[2]) == ARGV[2]
  if facts['pending'] == 0 and (gone or name == ARGV[4]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
    removed = removed + 1
  end
end
return removed
