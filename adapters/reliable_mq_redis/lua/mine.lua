-- Returns those of ARGV[from ...] (ids, in rising order) that are pending for this consumer.
local function mine(stream, group, me, from)
  local held, ids = {}, {}
  local pending = redis.call('XPENDING', stream, group, ARGV[from], ARGV[#ARGV], 100000, me)
  for i = 1, #pending do held[pending[i][1]] = true end
  for i = from, #ARGV do
    if held[ARGV[i]] then ids[#ids + 1] = ARGV[i] end
  end
  return ids
end

-- Returns the ids followed by more words.
local function and_then(ids, ...)
  local words = {unpack(ids)}
  for _, word in ipairs({...}) do words[#words + 1] = word end
  return words
end
