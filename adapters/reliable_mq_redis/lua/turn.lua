-- Gives one member at a time the turn to tidy a topic up.
--
-- KEYS: turn. ARGV: me, for how many ms it lasts. Returns 1, or 0 while it is another's.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
-- It is not there. A full server goes on after a first write that takes no memory.
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
