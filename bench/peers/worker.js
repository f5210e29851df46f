// workerd and Deno run this same file. Both keep one isolate for all requests.

const UPSTREAM = "http://127.0.0.1:@upstream_port@";

export default {
  async fetch(request) {
    const path = new URL(request.url).pathname;
    if (path === "/outbound") {
      const answer = await fetch(UPSTREAM + path);
      return new Response(await answer.text());
    }
    if (path === "/wait") {
      await new Promise((resolve) => setTimeout(resolve, @wait_s@ * 1000));
    }
    return new Response("hello " + path);
  },
};
