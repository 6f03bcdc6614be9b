-- Takes entries for the owner of partitions of an ordered group.
--
-- KEYS: ownership and stream of each partition. ARGV: group, me, count, then for each partition
-- my epoch; a cursor: the id up to which the entries pending at my start were read, '>' when there
-- are no more; '' if I do not know the last id delivered to the group.
-- Returns for each partition {0} where it is no longer mine, else {1, cursor, entries delivered
-- before, new entries, the last id delivered if unknown and nothing is new}.
local group, me, room = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function last_delivered(stream)
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local facts = {}
    for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
    if facts['name'] == group then return facts['last-delivered-id'] end
  end
  return ''
end

local found = {}
for p = 1, #KEYS / 2 do
  local stream, epoch, cursor = KEYS[2 * p], ARGV[1 + 3 * p], ARGV[2 + 3 * p]
  local own = redis.call('HMGET', KEYS[2 * p - 1], 'owner', 'epoch')
  if own[1] ~= me or own[2] ~= epoch then
    found[p] = {0}
  else
    local again, new, last = {}, {}, ''
    -- Nothing new before the last entry that anybody left behind: the order would be lost.
    while cursor ~= '>' and room > 0 do
      local ids = ids_of(redis.call('XPENDING', stream, group, '(' .. cursor, '+', room))
      local entries = claim(stream, group, me, 0, ids)
      room = room - #entries
      extend(again, entries)
      cursor = ids[#ids] or '>'
    end
    if room > 0 then
      new = read_new(stream, group, me, room)
      room = room - #new
      if #new == 0 and ARGV[3 + 3 * p] == '' then last = last_delivered(stream) end
    end
    found[p] = {1, cursor, again, new, last}
  end
end
return found
