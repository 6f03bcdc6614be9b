-- Returns the ids of an XPENDING range.
local function ids_of(pending)
  local ids = {}
  for i = 1, #pending do ids[i] = pending[i][1] end
  return ids
end

-- Takes pending entries over, whoever has them, if idle for that long, and returns them. Delivery
-- counts rise. Entries deleted meanwhile are acknowledged: nobody can handle them any more.
local function claim(stream, group, me, idle, ids)
  if #ids == 0 then return {} end
  local reply = redis.call('XCLAIM', stream, group, me, idle, unpack(ids))
  local entries, found = {}, {}
  for i = 1, #reply do
    if reply[i] then
      entries[#entries + 1] = reply[i]
      found[reply[i][1]] = true
    end
  end
  if #entries < #ids then
    for i = 1, #ids do
      if not found[ids[i]] and #redis.call('XRANGE', stream, ids[i], ids[i]) == 0 then
        redis.call('XACK', stream, group, ids[i])
      end
    end
  end
  return entries
end

-- Appends what is in b to a.
local function extend(a, b)
  for i = 1, #b do a[#a + 1] = b[i] end
end

-- Reads what the group has not seen yet.
local function read_new(stream, group, me, count)
  local reply = redis.call(
    'XREADGROUP', 'GROUP', group, me, 'COUNT', count, 'STREAMS', stream, '>')
  return reply and reply[1][2] or {}
end
