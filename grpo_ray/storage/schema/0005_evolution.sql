-- What is known of a template is a mean and how sure it is; steps saved before say nothing of the second.
ALTER TABLE member ADD COLUMN deviation float8;
ALTER TABLE member DROP COLUMN total;

-- Every template that was tried may leave: recipes have no `min_trials` any more, and keys that they don't know are refused.
UPDATE state SET state = (state::jsonb #- '{recipe,evolution,min_trials}')::json
    WHERE state #> '{recipe,evolution,min_trials}' IS NOT NULL;

-- A template's time in the population. `made`: the step at whose beginning it first lived; `retired`: the step at whose
-- beginning it lived no longer, null while it lives.
CREATE TABLE template_life (
    run      text NOT NULL,
    template text NOT NULL,
    made     integer NOT NULL,
    retired  integer,
    why      text NOT NULL DEFAULT '',
    PRIMARY KEY (run, template),
    FOREIGN KEY (run, template) REFERENCES template ON DELETE CASCADE
);

-- The lives of runs that are there already: by the steps that know of a template, and the first one after them.
INSERT INTO template_life (run, template, made, retired, why)
    SELECT m.run, m.template, m.made, after.step, coalesce((
        SELECT given.pair ->> 1
        FROM json_array_elements(after.state -> 'population' -> 'retired') WITH ORDINALITY AS given (pair, place)
        WHERE given.pair ->> 0 = m.template ORDER BY given.place DESC LIMIT 1), '')
    FROM (SELECT run, template, min(step) AS made, max(step) AS last FROM member GROUP BY run, template) AS m
    LEFT JOIN LATERAL (
        SELECT s.step, s.state FROM state s WHERE s.run = m.run AND s.step > m.last ORDER BY s.step LIMIT 1
    ) AS after ON true;

-- Templates that only steps explored ahead had: they came with the run's first state.
INSERT INTO template_life (run, template, made, retired)
    SELECT t.run, t.id, s.first, s.first FROM template t
    JOIN (SELECT run, min(step) AS first FROM state GROUP BY run) AS s ON s.run = t.run
    ON CONFLICT DO NOTHING;
