-- Takes entries for one member of an unordered group.
--
-- KEYS: streams. ARGV: group, me, the consumer of what was handed back, count, ms after which an
-- entry counts as abandoned (0: do not look), then a cursor for each stream: the id up to which
-- my own pending entries were read since I connected, '>' when there are no more.
-- Returns for each stream {cursor, entries delivered before, new entries}.
local group, me, released, room, abandoned =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local found = {}
for i = 1, #KEYS do
  local stream, cursor, again, new = KEYS[i], ARGV[5 + i], {}, {}
  local function take(idle, ids)
    local entries = claim(stream, group, me, idle, ids)
    room = room - #entries
    extend(again, entries)
  end
  if cursor ~= '>' and room > 0 then
    local ids = ids_of(
      redis.call('XPENDING', stream, group, '(' .. cursor, '+', room, me))
    take(0, ids)
    cursor = ids[#ids] or '>'
  end
  if room > 0 then
    take(0, ids_of(redis.call('XPENDING', stream, group, '-', '+', room, released)))
  end
  if room > 0 and abandoned > 0 then
    take(abandoned, ids_of(
      redis.call('XPENDING', stream, group, 'IDLE', abandoned, '-', '+', room)))
  end
  if room > 0 then
    new = read_new(stream, group, me, room)
    room = room - #new
  end
  found[i] = {cursor, again, new}
end
return found
