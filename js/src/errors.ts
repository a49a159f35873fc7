/** What the service refused, by its problem document (RFC 9457); or that no answer came: `status` 0, `code` `unreachable`. */
export class KvError extends Error {
  override name = "KvError";
  /** Never changes its meaning: `condition_failed`, `not_allowed` and the others of the reference. */
  readonly code: string = "unknown";
  /** The status of the answer, 0 where none came. */
  readonly status: number = 0;
  /** Whether the same request may succeed later. */
  readonly retryable: boolean = false;
  /** The present revision of the key whose condition does not hold. */
  declare readonly revision: number | undefined;
  /** The key whose condition does not hold, where several had one. */
  declare readonly key: string | undefined;
  /** Which operation of a batch it was. */
  declare readonly op: number | undefined;
  /** What it is in a few words; `message` says more. */
  declare readonly title: string | undefined;

  /** @internal */
  constructor(problem: Record<string, any>, options?: ErrorOptions) {
    super(problem.detail, options);
    Object.assign(this, problem); // with what else the document has: `limit`, `parameter`, `request_id`, …
  }
}

export const unreachable = (detail: string, cause?: unknown): KvError =>
  new KvError({ code: "unreachable", title: "The service cannot be reached", detail, retryable: true }, { cause });
