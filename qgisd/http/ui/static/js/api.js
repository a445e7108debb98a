// The REST API of the listener that this page came from.

const KEY = "qgisd-token"; // kept as long as the tab, and for this tab alone

/** The API said no, or did not say anything (status 0). */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setToken(token) {
  sessionStorage.setItem(KEY, token);
}

/** fetch() with the token, if there is one; a failure to connect is a Refused too. */
export async function ask(path, options = {}) {
  const token = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  try {
    return await fetch(path, { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new Refused(0, "qgisd does not answer");
  }
}

/** One call: the decoded answer. Outcomes that say ok: false are answers, other errors Refused. */
export async function call(method, path, query = {}) {
  const words = new URLSearchParams(query).toString();
  const response = await ask(`/api/v1${path}${words ? `?${words}` : ""}`, { method });
  let content = null;
  try {
    content = await response.json();
  } catch {
    // said below
  }
  if (!response.ok && (content === null || "detail" in content) && !("ok" in (content ?? {}))) {
    throw new Refused(response.status, content?.detail ?? `status ${response.status}`);
  }
  return content;
}

export function projectPath(project) {
  return `/projects/${encodeURIComponent(project)}`;
}

/** The fragment that shows a project. */
export function projectLink(pool, project) {
  return `#/project/${encodeURIComponent(pool)}/${encodeURIComponent(project)}`;
}
