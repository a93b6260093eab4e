-- Which judge it was, and whether it judged again (audit) what had been judged.
ALTER TABLE evaluation ADD COLUMN version text NOT NULL DEFAULT '', ADD COLUMN audit text NOT NULL DEFAULT '';

-- Replies that any run may use again are looked up without one.
CREATE INDEX reply_key ON reply (key);

-- Every call to an endpoint, whatever came of it; neither keys nor texts. `began`: seconds since 1970.
CREATE TABLE attempt (
    run               text NOT NULL REFERENCES run ON DELETE CASCADE,
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request           text NOT NULL,
    door              text NOT NULL,
    scope             text NOT NULL,
    number            integer NOT NULL,
    status            text NOT NULL,
    began             float8 NOT NULL,
    seconds           float8 NOT NULL,
    prompt_tokens     integer NOT NULL,
    completion_tokens integer NOT NULL,
    usd               float8 NOT NULL
);
CREATE INDEX attempt_run ON attempt (run, id);
