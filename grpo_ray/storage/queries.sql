-- Every statement the store uses, by name. `%(x)s` are psycopg's parameters.

-- name: create_run
-- No row comes back when the run is there already.
INSERT INTO run (id, name, steps, recipe) VALUES (%(run)s, %(name)s, %(steps)s, %(recipe)s)
ON CONFLICT DO NOTHING RETURNING id;

-- name: run_ids
-- Newest first.
SELECT id FROM run ORDER BY created DESC, id;

-- name: save_template
-- A template never changes, so the first is kept.
INSERT INTO template (run, id, text, task_type, complexity, system, parameters, settings, examples, version, parents,
    mutation, note, stand_in)
VALUES (%(run)s, %(id)s, %(text)s, %(task_type)s, %(complexity)s, %(system)s, %(parameters)s, %(settings)s,
    %(examples)s, %(version)s, %(parents)s, %(mutation)s, %(note)s, %(stand_in)s)
ON CONFLICT DO NOTHING;

-- name: save_state
-- No row comes back when the step has a state already.
INSERT INTO state (run, step, adapter, state) VALUES (%(run)s, %(step)s, %(adapter)s, %(state)s)
ON CONFLICT DO NOTHING RETURNING step;

-- name: save_member
-- What was known of one living template at the beginning of a step.
INSERT INTO member (run, step, template, fitness, deviation, trials)
VALUES (%(run)s, %(step)s, %(template)s, %(fitness)s, %(deviation)s, %(trials)s)
ON CONFLICT DO NOTHING;

-- name: begin_life
-- A template is made once.
INSERT INTO template_life (run, template, made) VALUES (%(run)s, %(template)s, %(step)s) ON CONFLICT DO NOTHING;

-- name: go_on_living
-- What was retired and has been taken back.
UPDATE template_life SET retired = NULL, why = ''
WHERE run = %(run)s AND retired IS NOT NULL AND template = ANY(%(living)s::text[]);

-- name: end_life
-- What lived before and is not among the living; of several reasons given for it the newest.
UPDATE template_life AS l SET retired = %(step)s, why = coalesce((
    SELECT g.why FROM unnest(%(ids)s::text[], %(why)s::text[]) WITH ORDINALITY AS g (template, why, place)
    WHERE g.template = l.template ORDER BY g.place DESC LIMIT 1), '')
WHERE l.run = %(run)s AND l.retired IS NULL AND l.template <> ALL(%(living)s::text[]);

-- name: templates
-- In the order they came.
SELECT id, text, task_type, complexity, system, parameters, settings, examples, version, parents, mutation, note, stand_in
FROM template WHERE run = %(run)s ORDER BY position;

-- name: lives
-- In the order of the templates, each with what was known of it, by step.
SELECT l.template, l.made, l.retired, l.why, coalesce(m.steps, '{}') AS steps, coalesce(m.fitness, '{}') AS fitness,
    coalesce(m.deviations, '{}') AS deviations, coalesce(m.trials, '{}') AS trials
FROM template t JOIN template_life l ON l.run = t.run AND l.template = t.id
LEFT JOIN (SELECT template, array_agg(step ORDER BY step) AS steps, array_agg(fitness ORDER BY step) AS fitness,
        array_agg(deviation ORDER BY step) AS deviations, array_agg(trials ORDER BY step) AS trials
    FROM member WHERE run = %(run)s GROUP BY template) AS m ON m.template = t.id
WHERE t.run = %(run)s ORDER BY t.position;

-- name: life
-- When one template lived.
SELECT made, retired, why FROM template_life WHERE run = %(run)s AND template = %(id)s;

-- name: trials
-- The rewards that one template got on one task in one step, where there are any.
SELECT g.step, p.template, p.task, t.task_type, array_agg(w.value) AS rewards FROM sample_group g
JOIN prompt p ON p.run = g.run AND p.id = g.prompt
JOIN task t ON t.run = g.run AND t.id = p.task
JOIN rollout r ON r.run = g.run AND r.sample_group = g.id
JOIN reward w ON w.run = g.run AND w.rollout = r.id
WHERE g.run = %(run)s AND g.step >= %(first)s AND g.step <= %(last)s AND w.value IS NOT NULL
GROUP BY g.step, p.template, p.task, t.task_type
ORDER BY g.step, p.template COLLATE "C", p.task COLLATE "C";

-- name: newest_state
-- Where a run is.
SELECT state FROM state WHERE run = %(run)s ORDER BY step DESC LIMIT 1;

-- name: states
-- The whole course of a run.
SELECT state FROM state WHERE run = %(run)s ORDER BY step;

-- name: save_task
-- Tasks come with the first group that asks them.
INSERT INTO task (run, id, question, answer, task_type, verifier, metadata)
VALUES (%(run)s, %(id)s, %(question)s, %(answer)s, %(task_type)s, %(verifier)s, %(metadata)s)
ON CONFLICT DO NOTHING;

-- name: save_prompt
-- After its task.
INSERT INTO prompt (run, id, template, task, messages)
VALUES (%(run)s, %(id)s, %(template)s, %(task)s, %(messages)s)
ON CONFLICT DO NOTHING;

-- name: save_group
-- A row comes back only from the writer that was first, who then saves the rollouts.
INSERT INTO sample_group (run, id, step, prompt, lost, prompt_token_ids, model, adapter, sampling, seconds)
VALUES (%(run)s, %(id)s, %(step)s, %(prompt)s, %(lost)s, %(prompt_token_ids)s, %(model)s, %(adapter)s, %(sampling)s,
    %(seconds)s)
ON CONFLICT DO NOTHING RETURNING id;

-- name: save_rollout
-- Only after save_group gave a row, so there is no conflict to mind.
INSERT INTO rollout (run, id, sample_group, index, text, token_ids, logprobs, finish_reason, seed, model_logprobs)
VALUES (%(run)s, %(id)s, %(group)s, %(index)s, %(text)s, %(token_ids)s, %(logprobs)s, %(finish_reason)s, %(seed)s,
    %(model_logprobs)s);

-- name: begin_scoring
-- The row's lock decides between two writers; only the first gets the row back.
UPDATE sample_group SET scored = now() WHERE run = %(run)s AND id = %(id)s AND scored IS NULL AND lost IS NULL
RETURNING id;

-- name: save_evaluation
-- Append-only.
INSERT INTO evaluation (run, rollout, index, judge, dimension, score, rationale, model, stand_in, version, audit)
VALUES (%(run)s, %(rollout)s, %(index)s, %(judge)s, %(dimension)s, %(score)s, %(rationale)s, %(model)s, %(stand_in)s,
    %(version)s, %(audit)s);

-- name: adding_turn
-- The rewards' locks put writers who add to the same rollouts in a row, each seeing what the one before added.
SELECT rollout FROM reward WHERE run = %(run)s AND rollout = ANY(%(rollouts)s) ORDER BY rollout FOR UPDATE;

-- name: add_evaluation
-- After all that was said of the rollout; what a judge of one version said again in the same way is kept once.
INSERT INTO evaluation (run, rollout, index, judge, dimension, score, rationale, model, stand_in, version, audit)
SELECT %(run)s, %(rollout)s, 1 + coalesce((SELECT max(e.index) FROM evaluation e
        WHERE e.run = %(run)s AND e.rollout = %(rollout)s), -1),
    %(judge)s, %(dimension)s, %(score)s, %(rationale)s, %(model)s, %(stand_in)s, %(version)s, %(audit)s
WHERE NOT EXISTS (SELECT FROM evaluation e WHERE e.run = %(run)s AND e.rollout = %(rollout)s AND e.judge = %(judge)s
    AND e.dimension = %(dimension)s AND e.version = %(version)s AND e.audit = %(audit)s);

-- name: save_label
-- After all that was said of the rollout; a person may say the same again.
INSERT INTO evaluation (run, rollout, index, judge, dimension, score, rationale, model, stand_in, version, audit)
SELECT %(run)s, %(rollout)s, 1 + coalesce((SELECT max(e.index) FROM evaluation e
        WHERE e.run = %(run)s AND e.rollout = %(rollout)s), -1),
    %(judge)s, %(dimension)s, %(score)s, %(rationale)s, %(model)s, %(stand_in)s, %(version)s, %(audit)s;

-- name: save_reward
-- After the evaluations it was made from.
INSERT INTO reward (run, rollout, value, evaluations) VALUES (%(run)s, %(rollout)s, %(value)s, %(evaluations)s);

-- name: save_reward_part
-- After its reward.
INSERT INTO reward_part (run, rollout, index, name, value, weight)
VALUES (%(run)s, %(rollout)s, %(index)s, %(name)s, %(value)s, %(weight)s);

-- name: save_advantage
-- One a rollout; a step done again changes nothing.
INSERT INTO advantage (run, rollout, step, value) VALUES (%(run)s, %(rollout)s, %(step)s, %(value)s)
ON CONFLICT DO NOTHING;

-- name: groups
-- With their prompts and tasks.
SELECT g.id, g.step, g.lost, g.prompt_token_ids, g.model, g.adapter, g.sampling, g.seconds,
    p.id AS prompt, p.template, p.messages, t.id AS task, t.question, t.answer, t.task_type, t.verifier, t.metadata
FROM sample_group g
JOIN prompt p ON p.run = g.run AND p.id = g.prompt
JOIN task t ON t.run = g.run AND t.id = p.task
WHERE g.run = %(run)s AND g.id = ANY(%(ids)s)
ORDER BY g.step, g.id COLLATE "C";

-- name: group_ids
-- Groups that have been scored, of steps `first` to `last`.
SELECT id FROM sample_group
WHERE run = %(run)s AND scored IS NOT NULL AND step >= %(first)s AND step <= %(last)s
ORDER BY step, id COLLATE "C";

-- name: lesson_ids
-- Groups that have advantages, of steps `first` to `last`.
SELECT DISTINCT g.step, g.id COLLATE "C" AS id FROM advantage a
JOIN rollout r ON r.run = a.run AND r.id = a.rollout
JOIN sample_group g ON g.run = a.run AND g.id = r.sample_group
WHERE a.run = %(run)s AND a.step >= %(first)s AND a.step <= %(last)s
ORDER BY g.step, g.id COLLATE "C";

-- name: rollouts
-- In the order in which they were drawn.
SELECT id, sample_group, index, text, token_ids, logprobs, finish_reason, seed, model_logprobs FROM rollout
WHERE run = %(run)s AND sample_group = ANY(%(ids)s) ORDER BY position;

-- name: evaluations
-- With whether each was there when the reward was made.
SELECT e.rollout, e.judge, e.dimension, e.score, e.rationale, e.model, e.stand_in, e.version, e.audit,
    e.index < coalesce((SELECT w.evaluations FROM reward w WHERE w.run = e.run AND w.rollout = e.rollout), 0) AS counted
FROM evaluation e WHERE e.run = %(run)s AND e.rollout = ANY(ARRAY(
    SELECT id FROM rollout WHERE run = %(run)s AND sample_group = ANY(%(ids)s)))
ORDER BY e.rollout, e.index;

-- name: rewards
-- With advantages, where there are any yet.
SELECT w.rollout, w.value,
    (SELECT a.value FROM advantage a WHERE a.run = w.run AND a.rollout = w.rollout) AS advantage
FROM reward w WHERE w.run = %(run)s AND w.rollout = ANY(ARRAY(
    SELECT id FROM rollout WHERE run = %(run)s AND sample_group = ANY(%(ids)s)));

-- name: reward_parts
-- In the order of the recipe's rewards.
SELECT p.rollout, p.name, p.value, p.weight
FROM reward_part p WHERE p.run = %(run)s AND p.rollout = ANY(ARRAY(
    SELECT id FROM rollout WHERE run = %(run)s AND sample_group = ANY(%(ids)s)))
ORDER BY p.rollout, p.index;

-- name: save_adapter
-- The hash names the content, so a conflict is the same adapter.
INSERT INTO adapter (run, hash, version, parent, step, rate_scale, metrics, weights, optimizer)
VALUES (%(run)s, %(hash)s, %(version)s, %(parent)s, %(step)s, %(rate_scale)s, %(metrics)s, %(weights)s, %(optimizer)s)
ON CONFLICT DO NOTHING;

-- name: load_adapter
-- The bytes, which no other statement reads.
SELECT weights, optimizer FROM adapter WHERE run = %(run)s AND hash = %(hash)s;

-- name: adapters
-- By version and time.
SELECT hash, version, parent, step, rate_scale, metrics FROM adapter WHERE run = %(run)s ORDER BY version, position;

-- name: save_score
-- An answer at temperature 0 is never asked twice.
INSERT INTO score (run, split, template, adapter, task, correct, text)
VALUES (%(run)s, %(split)s, %(template)s, %(adapter)s, %(task)s, %(correct)s, %(text)s)
ON CONFLICT DO NOTHING;

-- name: load_scores
-- In the order in which they were saved.
SELECT template AS template_id, adapter, task AS task_id, correct, text FROM score
WHERE run = %(run)s AND split = %(split)s ORDER BY position;

-- name: save_reply
-- The first reply is the one that counts.
INSERT INTO reply (run, key, text, model, stand_in, prompt_tokens, completion_tokens)
VALUES (%(run)s, %(key)s, %(text)s, %(model)s, %(stand_in)s, %(prompt_tokens)s, %(completion_tokens)s)
ON CONFLICT DO NOTHING;

-- name: load_replies
-- By their requests, scopes and occurrences.
SELECT key, text, model, stand_in, prompt_tokens, completion_tokens FROM reply
WHERE run = %(run)s AND key = ANY(%(keys)s);

-- name: load_replies_anywhere
-- The run's own before the oldest of the others.
SELECT DISTINCT ON (key) key, text, model, stand_in, prompt_tokens, completion_tokens FROM reply
WHERE key = ANY(%(keys)s) ORDER BY key, run <> %(run)s, created, run;

-- name: save_attempt
-- One line a call to an endpoint.
INSERT INTO attempt (run, request, door, scope, number, status, began, seconds, prompt_tokens, completion_tokens, usd)
VALUES (%(run)s, %(request)s, %(door)s, %(scope)s, %(number)s, %(status)s, %(time)s, %(seconds)s, %(prompt_tokens)s,
    %(completion_tokens)s, %(usd)s);

-- name: attempts
-- In the order in which they were saved.
SELECT request, door, scope, number, status, began AS time, seconds, prompt_tokens, completion_tokens, usd
FROM attempt WHERE run = %(run)s ORDER BY id;

-- name: save_outcome
-- The first outcome stays.
UPDATE run SET outcome = coalesce(outcome, %(outcome)s) WHERE id = %(run)s;

-- name: load_outcome
-- Null until the run has come to one.
SELECT outcome FROM run WHERE id = %(run)s;

-- name: event_turn
-- Events of one run are numbered in the order in which they become visible, so that a reader who asks for those
-- after the last one it saw misses none.
SELECT pg_advisory_xact_lock(hashtextextended('grpo-ray events ' || %(run)s::text, 0));

-- name: save_event
-- An event that was told before leaves no row.
INSERT INTO event (run, step, kind, detail, digest)
VALUES (%(run)s, %(step)s, %(kind)s, %(detail)s, %(digest)s) ON CONFLICT DO NOTHING;

-- name: events
-- What a reader has not seen yet.
SELECT id, time, step, kind, detail FROM event WHERE run = %(run)s AND id > %(after)s ORDER BY id;

-- name: save_wish
-- Append-only; the newest counts.
INSERT INTO wish (run, what, who) VALUES (%(run)s, %(what)s, %(who)s);

-- name: wanted
-- No row: nobody has asked for anything.
SELECT what FROM wish WHERE run = %(run)s ORDER BY id DESC LIMIT 1;

-- name: runs
-- One line a run, newest first.
SELECT r.id AS run, r.name, r.steps, r.created,
    coalesce((SELECT max(step) FROM state s WHERE s.run = r.id), 0) AS step,
    (SELECT count(*) FROM rollout o WHERE o.run = r.id) AS rollouts,
    coalesce((SELECT what FROM wish w WHERE w.run = r.id ORDER BY w.id DESC LIMIT 1), 'run') AS wanted
FROM run r ORDER BY r.created DESC, r.id;

-- name: progress
-- `groups` are those of the newest step that has any: with a lag, that one is ahead of the saved state.
SELECT r.steps,
    coalesce((SELECT max(step) FROM state s WHERE s.run = r.id), 0) AS step,
    (SELECT count(*) FROM sample_group g
     WHERE g.run = r.id AND g.step = (SELECT max(step) FROM sample_group n WHERE n.run = r.id)) AS groups,
    (SELECT count(*) FROM rollout o WHERE o.run = r.id) AS rollouts
FROM run r WHERE r.id = %(run)s;

-- name: search
-- A zero vector has no direction: its distance is NaN, and it is left out.
SELECT rollout, 1 - distance AS similarity FROM (
    SELECT rollout, vector <=> %(vector)s::vector AS distance FROM embedding
    WHERE run = %(run)s AND vector_dims(vector) = %(dimension)s
) AS found WHERE distance <> 'NaN' ORDER BY distance, rollout COLLATE "C" LIMIT %(limit)s;

-- name: unembedded
-- Rollouts that a search does not see yet.
SELECT r.id, r.text FROM rollout r
WHERE r.run = %(run)s AND NOT EXISTS (SELECT FROM embedding e WHERE e.run = r.run AND e.rollout = r.id)
ORDER BY r.id COLLATE "C" LIMIT %(limit)s;

-- name: save_embedding
-- One vector a rollout.
INSERT INTO embedding (run, rollout, model, vector) VALUES (%(run)s, %(rollout)s, %(model)s, %(vector)s::vector)
ON CONFLICT DO NOTHING;

-- name: known
-- Ids that begin with `id`, in one run or in all; one more than is ever shown.
SELECT run, id FROM known
WHERE kind = %(kind)s AND (%(run)s::text IS NULL OR run = %(run)s) AND starts_with(id, %(id)s)
ORDER BY id = %(id)s DESC, id COLLATE "C", run LIMIT 5;

-- name: known_ids
-- For the message that names near ids.
SELECT DISTINCT id FROM known WHERE kind = %(kind)s AND (%(run)s::text IS NULL OR run = %(run)s) LIMIT 5000;

-- name: group_of
-- The group a rollout was drawn in.
SELECT sample_group AS id FROM rollout WHERE run = %(run)s AND id = %(id)s;

-- name: step_of
-- The step a group was drawn in.
SELECT step FROM sample_group WHERE run = %(run)s AND id = %(id)s;

-- name: groups_of_prompt
-- Every time a prompt was asked.
SELECT id, step FROM sample_group WHERE run = %(run)s AND prompt = %(id)s ORDER BY step, id COLLATE "C";

-- name: prompt
-- One prompt with its task.
SELECT p.id AS prompt, p.template, p.messages, t.id AS task, t.question, t.answer, t.task_type, t.verifier, t.metadata
FROM prompt p JOIN task t ON t.run = p.run AND t.id = p.task
WHERE p.run = %(run)s AND p.id = %(id)s;

-- name: said_of
-- Everything that was said of one rollout, whether or not its reward was made from it.
SELECT rollout AS rollout_id, judge, dimension, score, rationale, model, stand_in, version, audit, created FROM evaluation
WHERE run = %(run)s AND rollout = %(id)s ORDER BY index;

-- name: template_chain
-- A template and all its ancestors up to the seeds, nearest first. No way is longer than there are templates, even where
-- a file made them each other's parents.
WITH RECURSIVE back AS (
    SELECT id, parents, 0 AS depth FROM template WHERE run = %(run)s AND id = %(id)s
    UNION
    SELECT t.id, t.parents, b.depth + 1 FROM back b JOIN template t ON t.run = %(run)s AND t.id = ANY(b.parents)
    WHERE b.depth < (SELECT count(*) FROM template WHERE run = %(run)s)
)
SELECT t.id, t.text, t.task_type, t.complexity, t.system, t.parameters, t.settings, t.examples, t.version, t.parents,
    t.mutation, t.note, t.stand_in
FROM (SELECT id, min(depth) AS depth FROM back GROUP BY id) AS found
JOIN template t ON t.run = %(run)s AND t.id = found.id
ORDER BY found.depth, t.id COLLATE "C";

-- name: children
-- Templates made from this one.
SELECT id FROM template WHERE run = %(run)s AND %(id)s = ANY(parents) ORDER BY position;

-- name: fitness_history
-- What was known of one template, step by step.
SELECT step, fitness, deviation, trials FROM member WHERE run = %(run)s AND template = %(id)s ORDER BY step;

-- name: template_rewards
-- The mean reward under one template, of the rollouts that have one.
SELECT avg(w.value) AS mean_reward, count(*) AS rollouts FROM prompt p
JOIN sample_group g ON g.run = p.run AND g.prompt = p.id
JOIN rollout r ON r.run = p.run AND r.sample_group = g.id
LEFT JOIN reward w ON w.run = p.run AND w.rollout = r.id
WHERE p.run = %(run)s AND p.template = %(id)s;

-- name: adapter_chain
-- An adapter and all those it was trained from, newest first.
WITH RECURSIVE back AS (
    SELECT hash, parent, 0 AS depth FROM adapter WHERE run = %(run)s AND hash = %(id)s
    UNION
    SELECT a.hash, a.parent, b.depth + 1 FROM back b JOIN adapter a ON a.run = %(run)s AND a.hash = b.parent
)
SELECT a.hash, a.version, a.parent, a.step, a.rate_scale, a.metrics, a.created,
    length(a.weights) AS weights_bytes, length(a.optimizer) AS optimizer_bytes
FROM back JOIN adapter a ON a.run = %(run)s AND a.hash = back.hash ORDER BY back.depth;

-- name: states_summary
-- One line a saved state.
SELECT s.step, s.adapter, s.created, count(m.template) AS templates, max(m.fitness) AS best_fitness
FROM state s LEFT JOIN member m ON m.run = s.run AND m.step = s.step
WHERE s.run = %(run)s GROUP BY s.step, s.adapter, s.created ORDER BY s.step;
